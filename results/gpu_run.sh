#!/usr/bin/env bash
# The real runs on one GPU, from a bare machine: data, three trainings, 50,000 samples each, scores, report, benchmarks.
#
#   bash results/gpu_run.sh --data cifar10
#   bash results/gpu_run.sh --data cifar10-jpeg.tar.xz --seconds 240 --wait 540 --out out
#
# The work goes on in a session of its own, whatever becomes of this call, which shows its log. Where a command may
# last only so long, --wait ends the call in time (exit status 75 while the work goes on), and the same call again goes
# on watching, or goes on working where the work was cut short. Stages that are finished are never done again.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash results/gpu_run.sh [options]

  --data D           as for compare.sh, or a .tar, .tar.gz, .tar.xz or .zip     (cifar10)
                     file with a folder `train` of images, unpacked below data/
  --name NAME        of the runs and the report                                 (<data>-gpu)
  --seconds S        of training, for each of the two denoising models          (600)
  --gan P            the GAN: dcgan, dcgan-plus or r3gan-tiny                   (r3gan-tiny)
  --gan_budget B     of training for the GAN, images=N or seconds=N             (seconds=S of --seconds)
  --num_samples N    images drawn from each model, of which all, or half as     (50000)
                     many as there are training images, are scored
  --sweep N,N        numbers of steps at which improved DDPM is sampled besides (10)
                     its default; '' for none
  --benchmark B      false leaves out results/benchmark.py, the default         (true)
                     precision against float32; timing.json is always written
  --benchmark_seconds S  for each batch size of timing.json                     (1)
  --compile B        as for compare.sh; the compiler takes minutes of the       (false)
                     training time
  --preset P         gpu; quick rehearses everything on a CPU                   (gpu)
  --device D         auto, cuda, cuda:N, cpu                                    (auto)
  --data_note TEXT   a sentence on the data for the report
  --wait S           seconds after which this call returns, done or not; 0      (0)
                     for no bound
  --out FOLDER       where <name>.tar.gz goes: logs, numbers, pictures and      (results/runs/gpu_run/<name>)
                     1,000 samples of each model, no checkpoints
HELP
}

die() {
  echo "gpu_run.sh: error: $1" >&2
  exit 2
}

UNFINISHED=75
asked=("$@")
data=cifar10 name="" seconds=600 gan=r3gan-tiny gan_budget="" num_samples=50000 sweep=10 benchmark=true benchmark_seconds=1
compile=false preset=gpu device=auto data_note="" wait=0 out="" job=""
while [ $# -gt 0 ]; do
  case "$1" in
    --data | --name | --seconds | --gan | --gan_budget | --num_samples | --sweep | --benchmark | --benchmark_seconds | \
      --compile | --preset | --device | --data_note | --wait | --out)
      [ $# -ge 2 ] || die "$1: a value is missing"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --job) job=1 && shift ;; # this is the session that works
    -h | --help) usage && exit 0 ;;
    *) die "$1: no such option; see --help" ;;
  esac
done

# ---- judge everything that compare.sh does not
whole() { [[ "$2" =~ ^[0-9]+$ ]] || die "$1 $2: must be a whole number"; }
for option in seconds num_samples wait; do whole "--$option" "${!option}"; done
: "${gan_budget:=seconds=$seconds}"
case "$gan" in dcgan | dcgan-plus | r3gan-tiny) ;; *) die "--gan $gan: must be dcgan, dcgan-plus or r3gan-tiny" ;; esac
[[ "$gan_budget" =~ ^(images|seconds)=[0-9]+$ ]] || die "--gan_budget $gan_budget: must be images=N or seconds=N"
case "$benchmark" in true | false) ;; *) die "--benchmark $benchmark: must be true or false" ;; esac
case "$compile" in true | false) ;; *) die "--compile $compile: must be true or false" ;; esac
case "$preset" in gpu | quick) ;; *) die "--preset $preset: must be gpu, or quick for a rehearsal" ;; esac
archive=""
case "$data" in
  *.tar | *.tar.gz | *.tgz | *.tar.xz | *.zip)
    [ -f "$data" ] || die "--data $data: no such file"
    archive=$(cd "$(dirname "$data")" && pwd)/$(basename "$data")
    stem=$(basename "$data")
    stem=${stem%.zip} && stem=${stem%.tgz} && stem=${stem%.gz} && stem=${stem%.xz} && stem=${stem%.tar}
    ;;
  */*) stem=$(basename "$data") && [ "$stem" != train ] || stem=$(basename "$(dirname "$data")") ;;
  *) stem=$data ;;
esac
: "${name:=$(tr -cs 'A-Za-z0-9._\n-' - <<<"$stem")-gpu}"
[[ "$name" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "--name $name: letters, digits, '.', '_' and '-' only"
if [ -z "$archive" ] && [[ "$data" == */* ]]; then
  [ -e "$data" ] || die "--data $data: no such file or folder"
  data=$(cd "$(dirname "$data")" && pwd)/$(basename "$data")
fi
if [ -n "$out" ]; then
  mkdir -p "$out" || die "--out $out: cannot be made"
  out=$(cd "$out" && pwd)
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -n "${VIRTUAL_ENV:-}" ] || [ ! -x .venv/bin/python ] || PYTHON=$root/.venv/bin/python
fi
state=results/runs/gpu_run/$name log=results/runs/gpu_run/$name/job.log
: "${out:=$root/$state}"

models=(gans denoising-diffusion-gan improved-diffusion)
pack() { # what there is by now: all but checkpoints and samples, of which the first 1,000
  local packed run
  packed=$(mktemp -d "$state/packed.XXXXXX")
  for model in "${models[@]}"; do
    run=results/runs/$model/$name
    [ -d "$run" ] || continue
    "$PYTHON" - "$run" <<'FIRST' || true
import sys
from pathlib import Path

import numpy as np

run = Path(sys.argv[1])
samples = max(run.glob("samples*.npz"), key=lambda path: path.stat().st_mtime, default=None)
if samples:
    with np.load(samples) as archive:
        np.savez_compressed(run / "first_1000.npz", arr_0=archive["arr_0"][:1000])
FIRST
    find "$run" -type f ! -name '*.pt' ! -name '*.pth' ! -name 'samples*.npz' ! -name '.*' -print0 |
      tar --null -T - -cf - | tar -xf - -C "$packed" || true # a log may grow while it is read
  done
  [ ! -d "results/reports/$name" ] || tar -cf - "results/reports/$name" | tar -xf - -C "$packed"
  cp "$state"/*.json "$log" "$packed" 2>/dev/null || true
  tar -czf "$out/.$name.tar.gz" -C "$packed" . && mv "$out/.$name.tar.gz" "$out/$name.tar.gz"
  rm -rf "$packed"
}

alive() { # whether the session that works is there; one that was killed may stay in the table for a while
  local pid
  pid=$(cat "$state/pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null &&
    [[ "$(ps -o stat= -p "$pid" 2>/dev/null)" != Z* ]]
}

# ---- the caller: start the work, or find it, and watch
if [ -z "$job" ]; then
  mkdir -p "$state"
  if [ -f "$state/done" ]; then
    echo "$name: finished before; results in $out/$name.tar.gz; remove $state/done to go over it again"
    exit 0
  fi
  from=1
  if alive; then
    from=$(($(wc -l <"$log") + 1))
  else
    rm -f "$state/status" "$state/pid"
    : >>"$log"
    from=$(($(wc -l <"$log") + 1))
    cd - >/dev/null # relative paths of the options are as seen from there
    setsid bash "$root/results/gpu_run.sh" "${asked[@]}" --job </dev/null >>"$root/$log" 2>&1 &
    cd "$root"
  fi
  tail -n "+$from" -F "$log" 2>/dev/null &
  watcher=$!
  trap 'kill "$watcher" 2>/dev/null || true' EXIT
  end=$((SECONDS + wait))
  until [ -f "$state/status" ]; do
    if [ -f "$state/pid" ] && ! alive && [ ! -f "$state/status" ]; then
      rm -f "$state/pid"
      echo "gpu_run.sh: error: the work was killed, see $log; the same call goes on with it" >&2
      exit 1
    fi
    if [ "$wait" -gt 0 ] && [ "$SECONDS" -ge "$end" ]; then
      pack
      echo "gpu_run.sh: goes on; the same call watches it again; so far: $out/$name.tar.gz" >&2
      exit "$UNFINISHED"
    fi
    sleep 1
  done
  sleep 1 # for the last lines
  status=$(cat "$state/status")
  [ "$status" = 0 ] || echo "gpu_run.sh: error: the work ended with status $status, see $log; the same call goes on" >&2
  exit "$status"
fi

# ---- the session that works
echo $$ >"$state/pid"
trap 'exit 143' INT TERM HUP
trap 'echo "$?" >"$state/status"; rm -f "$state/pid"' EXIT
say() { printf '\n== %s (%s, %d s)\n' "$1" "$(date +%H:%M:%S)" "$SECONDS"; }

say "packages"
if ! "$PYTHON" -c 'import torch, matplotlib, PIL, tqdm' 2>/dev/null; then
  make .venv/.installed
  PYTHON=$root/.venv/bin/python
fi
export PYTHON PYTHONUNBUFFERED=1
# beside an installation that lacks the project's own packages
export PYTHONPATH=$root/results:$root/improved-diffusion${PYTHONPATH:+:$PYTHONPATH}
"$PYTHON" -c 'import sys, torch; print(f"Python {sys.version.split()[0]}, torch {torch.__version__}", flush=True)'
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null || true

if [ -n "$archive" ]; then
  say "unpack"
  folder=${DATA_ROOT:-data}/$stem
  if [ ! -f "$folder/.unpacked" ]; then
    mkdir -p "$folder"
    case "$archive" in
      *.zip) "$PYTHON" -m zipfile -e "$archive" "$folder" ;;
      *) tar -xf "$archive" -C "$folder" ;;
    esac
    touch "$folder/.unpacked"
  fi
  train=$(find "$folder" -type d -name train | sort | head -n 1)
  data=${train:-$folder}
fi

say "compare"
bash results/compare.sh --data "$data" --preset "$preset" --name "$name" --num_samples "$num_samples" \
  --models "$(IFS=, && echo "${models[*]}")" --gan "$gan" --device "$device" --compile "$compile" --history 0 --sweep "$sweep" \
  --benchmark_seconds "$benchmark_seconds" --data_note "$data_note" \
  --budget "gans:$gan_budget,denoising-diffusion-gan:seconds=$seconds,improved-diffusion:seconds=$seconds"

if [ "$benchmark" = true ]; then
  pack # the benchmarks may come to grief
  for model in "${models[@]}"; do
    say "benchmark: $model"
    "$PYTHON" -u results/benchmark.py "$model" --device "$device" --rounds 3 --out "$state/benchmark-$model.json" \
      $([ "$preset" = gpu ] || echo --small) || echo "gpu_run.sh: the benchmark of $model failed"
  done
fi

say "pack"
pack
say "done: $out/$name.tar.gz"
touch "$state/done"
