"""The part of REPORT.html to explore: a plot whose points show their samples, and sliders over evaluations and time.

Everything is in the page without scripts: the plot, and all samples with their captions. The script only hides the
samples that are not chosen. A link may choose: REPORT.html#nfe=4, #part=50 or #metric=coverage.
"""

import base64
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from comparison import formatting, png
from comparison.cli import UserError
from comparison.report import plots
from comparison.report.tradeoffs import QUALITY, main_rows

Row = Mapping[str, Any]
METRICS = (QUALITY, "coverage", "recall", "precision", "modes_matched")  # of the switch
WIDTH, HEIGHT, LEFT, BOTTOM = 720, 330, 60, 40  # of the plot, in its own units
SHOWN = 16  # samples in a strip
LEAST = 1e-3  # Frechet distance that is still shown; copies have none
ALL = 100  # percent of the training

SCRIPT = """\
const root = document.getElementById("explore"), figures = [...root.querySelectorAll("figure")];
const said = root.querySelector("[role=status]");
function show(test, text) {
  figures.forEach((figure) => { figure.hidden = !test(figure.dataset); });
  said.textContent = text;
}
function point(circle) {
  return () => show((d) => d.key === circle.dataset.key, circle.querySelector("title").textContent);
}
for (const circle of root.querySelectorAll("circle")) {
  circle.addEventListener("focus", point(circle));
  circle.addEventListener("mouseenter", point(circle));
}
for (const slider of root.querySelectorAll("input[type=range]")) {
  const values = slider.dataset.values.split(" "), kind = slider.dataset.kind;
  const move = () => {
    const value = values[slider.value];
    slider.setAttribute("aria-valuetext", value + slider.dataset.unit);
    show((d) => d[kind] === value, value + slider.dataset.unit);
  };
  slider.addEventListener("input", move);
  slider.addEventListener("focus", move);
}
for (const radio of root.querySelectorAll("input[type=radio]")) {
  radio.addEventListener("change", () => {
    for (const group of root.querySelectorAll("g[data-metric]")) {
      group.setAttribute("visibility", group.dataset.metric === radio.value ? "visible" : "hidden");
    }
  });
}
root.classList.add("scripted");
show((d) => d.main === "yes", "each model as trained");
function follow() {  // links as #nfe=4, #part=50, #metric=coverage
  for (const [kind, value] of new URLSearchParams(location.hash.slice(1))) {
    for (const input of root.querySelectorAll("input")) {
      if (input.type === "range" && input.dataset.kind === kind && input.dataset.values.split(" ").includes(value)) {
        input.value = input.dataset.values.split(" ").indexOf(value);
        input.dispatchEvent(new Event("input"));
      } else if (input.name === kind && input.value === value) {
        input.checked = true;
        input.dispatchEvent(new Event("change"));
      }
    }
  }
}
follow();
addEventListener("hashchange", follow);
"""
HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()

STYLE = """\
#explore svg { width: 100%; height: auto; background: white; border-radius: 4px; }
#explore svg text { font: 12px system-ui, sans-serif; fill: #333; }
#explore circle { cursor: pointer; }
#explore circle:focus, #explore circle:hover { stroke: #000; stroke-width: 3; outline: none; }
#explore figure { margin: .6rem 0; }
#explore figure img { image-rendering: pixelated; width: 100%; padding: 0; }
#explore fieldset, #explore .sliders { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; border: 0; padding: .3rem 0; }
#explore .sliders label { flex: 1 1 18rem; }
#explore input[type=range] { width: 100%; }
#explore .controls { display: none; }
#explore.scripted .controls { display: block; }
#explore [role=status] { font-weight: bold; }
"""

TEMPLATE = """\
<section id="explore">
<h2>Explore</h2>
<div class="controls">
<p>Point at a model, or move a slider, to see samples. Those of one model start from the same noise.</p>
<fieldset><legend>Metric</legend>
{%- for metric in metrics %}
<label><input type="radio" name="metric" value="{{ metric.name }}"{% if loop.first %} checked{% endif %}> \
{{ metric.heading }}</label>
{%- endfor %}
</fieldset>
</div>
<svg viewBox="0 0 {{ width }} {{ height }}" role="group" aria-label="Quality against time per image">
<path d="M{{ left }} 10V{{ height - bottom }}H{{ width - 10 }}" fill="none" stroke="#333"/>
{%- for x, text in times %}
<path d="M{{ x }} 10V{{ height - bottom }}" stroke="#ddd"/>
<text x="{{ x }}" y="{{ height - bottom + 16 }}" text-anchor="middle">{{ text }}</text>
{%- endfor %}
<text x="{{ (left + width) / 2 }}" y="{{ height - 6 }}" text-anchor="middle">time per image (log)</text>
{%- for metric in metrics %}
<g data-metric="{{ metric.name }}" visibility="{{ 'visible' if loop.first else 'hidden' }}">
{%- for y, text in metric.ticks %}
<text x="{{ left - 6 }}" y="{{ y + 4 }}" text-anchor="end">{{ text }}</text>
{%- endfor %}
<text x="14" y="{{ (height - bottom) / 2 }}" transform="rotate(-90 14 {{ (height - bottom) / 2 }})" \
text-anchor="middle">{{ metric.axis }}</text>
{%- for point in metric.points %}
<circle cx="{{ point.x }}" cy="{{ point.y }}" r="7" fill="{{ point.colour }}" tabindex="0" role="button" \
data-key="{{ point.key }}"><title>{{ point.title }}</title></circle>
<text x="{{ point.x }}" y="{{ point.y + point.below }}" text-anchor="middle">{{ point.text }}</text>
{%- endfor %}
</g>
{%- endfor %}
</svg>
<div class="controls sliders">
{%- for slider in sliders %}
<label>{{ slider.label }}
<input type="range" min="0" max="{{ slider.stops | length - 1 }}" value="0" data-kind="{{ slider.kind }}" \
data-unit="{{ slider.unit }}" data-values="{{ slider.stops | join(' ') }}"></label>
{%- endfor %}
</div>
<p role="status"></p>
{%- for figure in figures %}
<figure data-key="{{ figure.key }}" data-nfe="{{ figure.nfe }}" data-part="{{ figure.part }}" \
data-main="{{ figure.main }}"><img alt="Samples: {{ figure.caption }}" src="{{ figure.image }}">
<figcaption>{{ figure.caption }}</figcaption></figure>
{%- endfor %}
</section>
"""


def render(environment: Any, rows: Sequence[Row], folders: Sequence[Path]) -> str:
    """Return the section as HTML, '' if no row has samples.

    Args:
        environment: a Jinja2 environment that escapes.
        rows: rows of the report.
        folders: run folders, in the order of the main rows.
    """
    figures = _figures(rows, folders)
    timed = [row for row in rows if row["seconds_per_image"] and QUALITY in row["metrics"]]
    if not figures or not timed:
        return ""
    content = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "bottom": BOTTOM, "figures": figures}
    low, high = (f(row["seconds_per_image"] for row in timed) for f in (min, max))
    times = _Log(low / 2, high * 4, LEFT, WIDTH - 10)
    content["times"] = [(times(tick), formatting.seconds(tick)) for tick in times.ticks()]
    content["metrics"] = [metric for name in METRICS if (metric := _metric(name, timed, times))]
    content["sliders"] = _sliders(figures)
    return environment.from_string(TEMPLATE).render(content)


class _Log:
    """A logarithmic scale from values to positions."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Return powers of ten, and twice and five times these if there are few."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        inside = [tick for tick in ticks if self.low <= tick <= self.high]
        tens = [tick for tick in inside if f"{tick:e}".startswith("1.0")]
        return tens if len(tens) > 2 else inside


def _metric(name: str, rows: Sequence[Row], times: _Log) -> dict[str, Any] | None:
    """Return ticks and points of a metric; None if no row has it."""
    shown = [(row, colour) for row, colour in zip(rows, plots.colours(rows), strict=True) if name in row["metrics"]]
    if not shown:
        return None
    heading, better = formatting.METRICS[name]
    values = [row["metrics"][name]["value"] for row, _ in shown]
    top, floor = 10, HEIGHT - BOTTOM
    place: Callable[[float], float]
    if name == QUALITY:
        place = scale = _Log(max(min(values), LEAST) / 1.5, max(*values, LEAST) * 1.5, floor, top)
        ticks = scale.ticks()
    else:
        place, ticks = (lambda value: round(floor - value * (floor - top - 10), 1)), [0, 0.25, 0.5, 0.75, 1]
    points = []
    for row, colour in shown:
        score = formatting.metric(name, row["metrics"][name])
        title = f"{row['label']}: {heading} {score}, {formatting.seconds(row['seconds_per_image'])} per image"
        text = row["series"] if row["setting"] is None else f"{row['nfe']:g}" if row["nfe"] else ""
        position = {"x": times(row["seconds_per_image"]), "y": place(row["metrics"][name]["value"])}
        position["below"] = -12 if row["setting"] is None else 20
        points.append({**position, "colour": colour, "key": row["label"], "title": title, "text": text})
    marks = [(place(tick), formatting.format_number(tick)) for tick in ticks]
    axis = f"{heading}{' (log)' if name == QUALITY else ''}, {better} is better"
    return {"name": name, "heading": heading, "axis": axis, "ticks": marks, "points": points}


def _figures(rows: Sequence[Row], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return a strip of samples for each row and each earlier checkpoint whose samples.png exists."""
    places = {row["series"]: folder for row, folder in zip(main_rows(rows), folders, strict=True)}
    figures = []
    for row in rows:
        run, main = places[row["series"]], row["setting"] is None
        folder = run if main else run / "settings" / row["setting"]
        nfe = "" if row["nfe"] is None else f"{row['nfe']:g}"
        common = {"key": row["label"], "nfe": nfe, "part": ALL if main else "", "main": "yes" if main else "no"}
        figures.append(_figure(folder, _caption(row, row["metrics"]), common))
        for point in row["history"]:
            text = f"{row['label']} after {formatting.seconds(point['wall_seconds'])} of training"
            caption = _caption({**row, "label": text}, point["metrics"])
            part = {"key": "", "nfe": "", "part": point["name"], "main": "no"}
            figures.append(_figure(run / "history" / point["name"], caption, part))
    return [figure for figure in figures if figure]


def _caption(row: Row, metrics: Mapping[str, Any]) -> str:
    parts = [row["label"]]
    if QUALITY in metrics:
        parts.append(f"Frechet distance {formatting.metric(QUALITY, metrics[QUALITY])}")
    if row["seconds_per_image"]:
        parts.append(f"{formatting.seconds(row['seconds_per_image'])} per image")
    return ", ".join(parts)


def _figure(folder: Path, caption: str, data: dict[str, Any]) -> dict[str, Any] | None:
    path = folder / "samples.png"
    if not path.is_file() or path.resolve().parent != folder.resolve():  # a link could show a private picture
        return None
    try:
        images = png.cut(np.asarray(Image.open(path).convert("RGB")))[:SHOWN]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not readable as a picture ({error})") from None
    if not len(images):
        return None
    strip = np.concatenate(list(images), axis=1)
    return {**data, "caption": caption, "image": data_url(Image.fromarray(strip), lossless=True)}


def data_url(image: Image.Image, lossless: bool = False) -> str:
    """Return an image as a data: URL in WebP, which is several times smaller than PNG."""
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=lossless, quality=90, method=6)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _sliders(figures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the sliders that have at least two positions."""
    counts = sorted({figure["nfe"] for figure in figures if figure["nfe"]}, key=float)
    parts = sorted({str(figure["part"]) for figure in figures if str(figure["part"]).isdecimal()}, key=int)
    sliders = [
        {"label": "network evaluations per image", "kind": "nfe", "unit": " evaluations", "stops": counts},
        {"label": "part of the training time", "kind": "part", "unit": "% of the training", "stops": parts},
    ]
    return [slider for slider in sliders if len(slider["stops"]) > 1]
