#!/usr/bin/env bash
# The main job: data -> train -> sample -> evaluate -> report, the same budget and protocol for every model.
#
#   bash results/compare.sh --data shapes --preset quick --name quick
#   bash results/compare.sh --data path/to/images --preset cpu --budget seconds=2160 --name mine
#
# Writes results/runs/<model>/<name>/ for each model and results/reports/<name>/. What is finished is reused: call it
# again after an interruption and it goes on where it stopped; --fresh starts over.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash results/compare.sh [options]

  --data D           shapes, cifar10, stackmnist, lsun, celeba_256, a folder  (shapes)
                     of images, an .npz or a .zip file
  --preset P         quick, cpu, gpu or paper: sizes and settings, flags.sh   (quick)
  --budget B         of training, per model: seconds=N of wall time, images=N,
                     or recipe (each model's own length; unequal); for each   (quick seconds=150, cpu seconds=2160,
                     model another: gans:images=N,improved-diffusion:...       gpu images=2500000, paper recipe)
  --models M,M       which of gans,improved-diffusion,denoising-diffusion-gan (all three)
  --name NAME        of the runs and the report                               (<data>-<preset>)
  --num_samples N    images drawn from and scored for each model              (quick 1000, cpu 2000, else 50000)
  --image_size S     pixels of all models                                     (32)
  --seed S           of training and sampling                                 (0)
  --sweep N,N        numbers of steps at which improved-diffusion is sampled
                     besides its default; '' for none                         (quick and cpu 10, else 10,25,100,250)
  --history K        pause training K times at equal distances, draw samples,
                     0 for none                                               (cpu 3, gpu 4, else 0)
  --benchmark B      true measures speed and memory of every sampler          (true)
  --benchmark_seconds S  spent on each batch size                             (quick 0.3, else 2)
  --compile B        true fuses the denoising models' networks in training by (false)
                     torch.compile: minutes of waiting, for GPUs
  --features F       of the scores: auto, cifar or random, see evaluate.py    (auto)
  --inception_weights FILE   also score with the standard network, see evaluate.py
  --data_note TEXT   a sentence on the data for the report
  --device D         auto, cpu, cuda, cuda:N, mps                             (auto)
  --fresh            train and sample anew
HELP
}

die() {
  echo "compare.sh: error: $1" >&2
  exit 2
}

data=shapes preset=quick budget="" models=gans,improved-diffusion,denoising-diffusion-gan name="" num_samples=""
image_size=32 seed=0 data_note="" device=auto fresh="" benchmark=true features=auto inception_weights=""
benchmark_seconds="" compile=false
unset sweep history # '' and 0 differ from not given
while [ $# -gt 0 ]; do
  case "$1" in
    --data | --preset | --budget | --models | --name | --num_samples | --image_size | --seed | --data_note | --device | \
      --sweep | --history | --benchmark | --benchmark_seconds | --compile | --features | --inception_weights)
      [ $# -ge 2 ] || die "$1: a value is missing"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --fresh) fresh=--fresh && shift ;;
    -h | --help) usage && exit 0 ;;
    *) die "$1: no such option; see --help" ;;
  esac
done

# ---- judge everything before the first second is over
case "$preset" in
  quick) : "${budget:=seconds=150}" "${num_samples:=1000}" "${sweep=10}" "${history=0}" "${benchmark_seconds:=0.3}" ;;
  cpu) : "${budget:=seconds=2160}" "${num_samples:=2000}" "${sweep=10}" "${history=3}" ;;
  gpu) : "${budget:=images=2500000}" "${num_samples:=50000}" "${sweep=10,25,100,250}" "${history=4}" ;;
  paper) : "${budget:=recipe}" "${num_samples:=50000}" "${sweep=10,25,100,250}" "${history=0}" ;;
  *) die "--preset $preset: must be quick, cpu, gpu or paper" ;;
esac
: "${benchmark_seconds:=2}"
[[ "$benchmark_seconds" =~ ^[0-9]*\.?[0-9]+$ && "$benchmark_seconds" =~ [1-9] ]] ||
  die "--benchmark_seconds $benchmark_seconds: must be a number above 0"
whole() { [[ "$2" =~ ^[0-9]+$ ]] || die "$1 $2: must be a whole number"; }
whole --num_samples "$num_samples"
whole --image_size "$image_size"
whole --seed "$seed"
whole --history "$history"
[ "$history" -lt 100 ] || die "--history $history: must be below 100"
[ "$num_samples" -ge 64 ] || die "--num_samples $num_samples: at least 64 are needed for a score"
IFS=, read -r -a steps <<<"$sweep"
[[ "$sweep" =~ ^([1-9][0-9]*(,[1-9][0-9]*)*)?$ ]] || die "--sweep $sweep: must be numbers of steps like 10,50, or ''"
[ -z "$(printf '%s\n' "${steps[@]}" | sort | uniq -d)" ] || die "--sweep $sweep: name each number once"
case "$benchmark" in true | false) ;; *) die "--benchmark $benchmark: must be true or false" ;; esac
case "$compile" in true | false) ;; *) die "--compile $compile: must be true or false" ;; esac
case "$features" in auto | cifar | random) ;; *) die "--features $features: must be auto, cifar or random" ;; esac
[ -z "$inception_weights" ] || [ -f "$inception_weights" ] || die "--inception_weights $inception_weights: no such file"
case "$image_size" in
  16 | 32 | 64 | 128 | 256) ;;
  *) die "--image_size $image_size: must be 16, 32, 64, 128 or 256" ;;
esac
IFS=, read -r -a chosen <<<"$models"
[ "${#chosen[@]}" -gt 0 ] || die "--models: name at least one model"
[ -z "$(printf '%s\n' "${chosen[@]}" | sort | uniq -d)" ] || die "--models $models: name each model once"
for model in "${chosen[@]}"; do
  case "$model" in
    gans | improved-diffusion | denoising-diffusion-gan) ;;
    *) die "--models $model: must be among gans,improved-diffusion,denoising-diffusion-gan" ;;
  esac
done
limits=() # of the chosen models, in their order: flag and number, "" for its own recipe
for model in "${chosen[@]}"; do
  own=$budget
  if [[ "$budget" == *:* ]]; then
    own=$(tr , '\n' <<<"$budget" | grep "^$model:") || die "--budget $budget: names no bound for $model"
    own=${own#"$model:"}
    [[ "$own" != *$'\n'* ]] || die "--budget $budget: names $model twice"
  fi
  case "$own" in
    seconds=* | images=*) whole --budget "${own#*=}" && limits+=("--max_${own%%=*} ${own#*=}") ;;
    recipe)
      [ "$preset" = paper ] || die "--budget recipe: only the paper preset says how long each model trains"
      limits+=("")
      ;;
    *) die "--budget $budget: must be seconds=N, images=N or recipe, or one such for each model as gans:images=N,..." ;;
  esac
  bound=${limits[-1]##* }
  [ -z "$bound" ] || [ "$bound" -gt 0 ] || die "--budget $budget: must be above 0"
  if [ "$history" -gt 0 ]; then
    [ -n "$bound" ] || die "--history $history: --budget recipe cannot be divided; use seconds=N or images=N"
    [ "$bound" -gt "$history" ] || die "--history $history: --budget $budget is too small for $((history + 1)) parts"
  fi
done
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -n "${VIRTUAL_ENV:-}" ] || [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi
checked=$("$PYTHON" - "$data" "$preset" "$name" <<'CHECK'
import re
import sys

try:
    from comparison.cli import UserError
    from comparison.data.sources import check_source, find_images, is_database, is_name, source_name, stored_images
except ImportError:
    sys.exit("compare.sh: error: the package `comparison` is missing: pip install -r requirements.txt")
data, preset, name = sys.argv[1:]
try:
    check_source(data, "--data")
except UserError as error:
    sys.exit(f"compare.sh: error: {error}")
place = stored_images(data)
small_batch = "-"
if place and place.path.is_dir() and not is_database(place.path):
    count = sum(1 for _ in find_images(place.path))
    if count < 16:
        sys.exit(f"compare.sh: error: --data {data}: {count} images; at least 16 are needed")
    if count < 128:  # the largest batch size of the flag sets that are meant for small machines
        small_batch = str(2 ** (count.bit_length() - 1))
made = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{source_name(data)}-{preset}").lstrip("-.")
print("name" if is_name(data) else "path", small_batch, name or made)
CHECK
) || exit 2
read -r -d '' kind small_batch name <<<"$checked" || true
[[ "$name" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "--name $name: letters, digits, '.', '_' and '-' only"

if [ "$kind" = path ]; then # from here on as seen from the repository, or whole
  data=$(cd "$(dirname "$data")" && pwd)/$(basename "$data")
  data=${data#"$root"/}
fi
if [ -n "$inception_weights" ]; then
  inception_weights=$(cd "$(dirname "$inception_weights")" && pwd)/$(basename "$inception_weights")
fi
case "$PYTHON" in */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;; esac
cd "$root"
PRESET=$preset
# shellcheck source=../flags.sh
source ./flags.sh
[[ "$DIFFUSION_FLAGS" =~ --diffusion_steps\ ([0-9]+) ]] && most=${BASH_REMATCH[1]}
sampler=ddim # of the sweep: the preset's own where it names one
[[ "$SAMPLE_FLAGS" =~ --sampler\ ([a-z-]+) ]] && sampler=${BASH_REMATCH[1]}
for n in "${steps[@]}"; do
  [ "$n" -le "$most" ] || die "--sweep $n: the $preset preset has $most steps"
  [[ "$SAMPLE_FLAGS " != *"ddim$n "* && "$SAMPLE_FLAGS " != *"--num_sampling_steps $n "* ]] ||
    die "--sweep $n: what the $preset preset draws anyway"
done
ddgan_compile=--compile # a switch there
[ "$compile" = true ] || ddgan_compile=""
train_flags=(--seed "$seed" --device "$device")
[ "$small_batch" = - ] || train_flags+=(--batch_size "$small_batch")
draw_flags=(--num_samples "$num_samples" --seed "$seed" --device "$device")
benchmark_flags=(--benchmark --benchmark_seconds "$benchmark_seconds")

say() { printf '\n== %s (%s)\n' "$1" "$(date +%H:%M:%S)"; }
newest() { # the file with the highest number among those that match
  local found
  found=$(ls -v -- $1 2>/dev/null | tail -n 1) || true
  [ -n "$found" ] || die "$2: the training left no checkpoint"
  echo "$found"
}

# unquoted on purpose below: the flags of flags.sh split at spaces
train() { # MODEL FLAG...: train it, or go on
  local model=$1 run=results/runs/$1/$name
  shift
  case "$model" in
    gans)
      "$PYTHON" -u gans/cifar_gan.py --data "$data" --run_dir "$run" $GAN_FLAGS --image_size "$image_size" \
        --num_samples 0 --held_out 0 "${train_flags[@]}" "$@"
      ;;
    improved-diffusion)
      local own=()
      [[ "$*" != *--max_* ]] || own=(--max_steps 0) # the preset's own length gives way to --budget
      OPENAI_LOGDIR=$run "$PYTHON" -u improved-diffusion/scripts/image_train.py --data_dir "$data" \
        $MODEL_FLAGS $DIFFUSION_FLAGS $TRAIN_FLAGS --image_size "$image_size" --compile "$compile" \
        "${train_flags[@]}" "${own[@]}" "$@"
      ;;
    denoising-diffusion-gan)
      "$PYTHON" -u denoising-diffusion-gan/train_ddgan.py --dataset "$data" --exp "$run" \
        $DDGAN_FLAGS $DDGAN_TRAIN_FLAGS --image_size "$image_size" $ddgan_compile "${train_flags[@]}" "$@"
      ;;
  esac
}
draw() { # MODEL FOLDER FLAG...: samples of its newest checkpoint, unless they are there
  local model=$1 run=results/runs/$1/$name folder=$2 checkpoint epoch
  shift 2
  case "$model" in
    gans)
      checkpoint=$(newest "$run/checkpoint_*.pt" "$run")
      "$PYTHON" -u gans/sample_gan.py --checkpoint "$checkpoint" --out "$folder/samples.npz" "${draw_flags[@]}" "$@"
      ;;
    improved-diffusion)
      checkpoint=$(newest "$run/ema_*.pt" "$run")
      "$PYTHON" -u improved-diffusion/scripts/image_sample.py --model_path "$checkpoint" --out_dir "$folder" \
        $MODEL_FLAGS $DIFFUSION_FLAGS $SAMPLE_FLAGS --image_size "$image_size" "${draw_flags[@]}" "$@"
      ;;
    denoising-diffusion-gan)
      checkpoint=$(newest "$run/netG_*.pth" "$run")
      epoch=${checkpoint##*netG_} && epoch=${epoch%.pth}
      "$PYTHON" -u denoising-diffusion-gan/test_ddgan.py --dataset "$data" --exp "$run" --epoch_id "$epoch" \
        --out "$folder/samples.npz" $DDGAN_FLAGS $DDGAN_SAMPLE_FLAGS --image_size "$image_size" "${draw_flags[@]}" "$@"
      ;;
  esac
}
measure() { # MODEL FOLDER FLAG...: time the sampler
  [ "$benchmark" = true ] || return 0
  say "$1: benchmark${6:+, $6}"
  draw "$@" "${benchmark_flags[@]}"
}

runs=()
for i in "${!chosen[@]}"; do
  model=${chosen[i]}
  run=results/runs/$model/$name
  read -r flag bound <<<"${limits[i]}" || true
  runs+=("$run")
  start=$fresh
  for ((part = 1; part <= history; part++)); do
    piece=$((bound * part / (history + 1))) percent=$(((200 * part + history + 1) / (2 * (history + 1))))
    say "$model: train, ${flag#--max_} $piece of $bound"
    train "$model" "$flag" "$bound" --stop_after "$piece" $start
    start=""
    # on a later call the run may be past this part, and its newest checkpoint with it
    if grep -q "\"reason\": \"${flag#--} $piece\"" "$run/config.json"; then
      say "$model: sample at $percent%"
      draw "$model" "$run/history/$percent"
    elif [ ! -f "$run/history/$percent/sampling.json" ]; then
      echo "$run: trained past $percent% before; no samples of that stage"
    fi
  done
  say "$model: train, ${flag:+${flag#--max_} }${bound:-its recipe}"
  train "$model" $flag $bound $start
  say "$model: sample"
  draw "$model" "$run" --interpolation
  measure "$model" "$run"
  [ "$model" = improved-diffusion ] || continue
  for n in "${steps[@]}"; do
    setting=("$model" "$run/settings/$sampler$n")
    if [[ "$SAMPLE_FLAGS" == *--sampler* ]]; then
      setting+=(--num_sampling_steps "$n")
    else
      setting+=(--use_ddim True --timestep_respacing "ddim$n")
    fi
    say "$model: sample in $n steps"
    draw "${setting[@]}"
    measure "${setting[@]}"
  done
done

say "evaluate"
report=results/reports/$name
mkdir -p "$report"
"$PYTHON" -u results/evaluate.py "${runs[@]}" --reference "$data" --image_size "$image_size" \
  --num_images "$num_samples" --seed "$seed" --device "$device" --features "$features" \
  ${inception_weights:+--inception_weights "$inception_weights"} --anchors "$report/anchors.json"
say "report"
"$PYTHON" -u results/report.py --name "$name" --anchors "$report/anchors.json" --budget "$budget" \
  --data_note="$data_note" "${runs[@]}"
