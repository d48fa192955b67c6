#!/usr/bin/env bash
# Follow the README on a CPU with random weights of the released size: from ten real recordings to speech, merged and
# converted.
#
#   scripts/real_size.sh --size released -o build/real_size
#   scripts/real_size.sh --size small
#
# Prints the seconds and the peak memory of each command, and all of them as JSON on the last line. The model and the
# codec lie in a cache of the Hugging Face hub, so the commands name them as users do.
#
#   --size released|small    size of the random checkpoint. released needs 24 GB of memory and 30 GB of disk
#   -o DIR                   folder for everything
#   --recordings FILE.jsonl  other recordings than those of the Debian package pocketsphinx-testdata
#   --until STAGE            stop after this stage. The same command without it does the rest: a stage that was
#                            measured is not repeated
#
# PYTHON is the interpreter to use; the default is that of .venv.
set -euo pipefail
ROOT="$(cd "$(dirname "$0")/.." && pwd)"
PYTHON="${PYTHON:-$ROOT/.venv/bin/python}"
SIZE=released OUT= UNTIL= RECORDINGS=
while [ $# -gt 0 ]; do
  case "$1" in
    --size) SIZE="$2" ;;
    -o | --output) OUT="$2" ;;
    --recordings) RECORDINGS="$2" ;;
    --until) UNTIL="$2" ;;
    *) echo "unknown option $1; the first lines of $0 explain the options" >&2; exit 2 ;;
  esac
  shift 2
done
OUT="${OUT:-$ROOT/build/real_size_$SIZE}"
mkdir -p "$OUT"
cd "$OUT"
export HF_HUB_CACHE="$PWD/hub" HF_HUB_OFFLINE=1
HIGGS=("$PYTHON" -m higgs_trainer)
# These two multiply many rows at once, for which float32 may be faster.
TRAINING=("$PYTHON" "$ROOT/scripts/fast_products.py")

# Write recordings.jsonl.
list_recordings() {
  if [ -n "$RECORDINGS" ]; then
    ln -sfn "$(realpath "$RECORDINGS")" recordings.jsonl
  else
    "$PYTHON" "$ROOT/scripts/list_recordings.py" .
  fi
}

is_measured() { grep -q "\"$1\"" measures.json 2> /dev/null; }

finish() {
  "$PYTHON" "$ROOT/scripts/measure_command.py" measures.json
  exit 0
}

# stage NAME OUTPUT COMMAND...: run a command once and measure it. OUTPUT is what a killed run may have left.
stage() {
  local name="$1" output="$2"
  shift 2
  if [ -n "$output" ] && ! is_measured "$name"; then rm -rf "$output"; fi
  "$PYTHON" "$ROOT/scripts/measure_command.py" measures.json "$name" "$@"
  if [ "$name" = "$UNTIL" ]; then finish; fi
}

# Packs of a few hundred tokens, two steps, no samples. The rest is the recipe of the README.
SHORT=(--tokens_per_pack 300 --use_cpu true --save_strategy steps --save_steps 1 --logging_steps 1 --eval_strategy no
  --load_best_model_at_end false --metric_for_best_model null --samples.texts "[]" --samples.held_out 0)

if [ ! -e hub.done ] && ! is_measured prepare; then
  rm -rf hub
  "$PYTHON" "$ROOT/scripts/measure_command.py" build.json build \
    "$PYTHON" "$ROOT/scripts/build_random_checkpoint.py" --size "$SIZE" --hub-cache -o hub
  touch hub.done
fi
list_recordings
[ -e voice/recipe.yaml ] || "${HIGGS[@]}" init voice --data recordings.jsonl
stage prepare voice/prepared "${HIGGS[@]}" prepare recordings.jsonl -o voice/prepared --held-out 2 \
  --recipe voice/recipe.yaml
stage check "" "${TRAINING[@]}" check voice/recipe.yaml "${SHORT[@]}" --max_steps 2
stage train voice/runs "${TRAINING[@]}" train voice/recipe.yaml "${SHORT[@]}" --max_steps 2
stage resume "" "${TRAINING[@]}" train voice/recipe.yaml "${SHORT[@]}" --max_steps 3 --resume_from_checkpoint true \
  --allow-changed training.max_steps
stage generate voice/spoken "${HIGGS[@]}" generate --model voice/runs/voice --text "He was a young man." \
  --max-seconds 1 -o voice/spoken
stage evaluate voice/evaluation "${HIGGS[@]}" evaluate voice/runs/voice --data voice/prepared/held_out \
  --max-seconds 1 -o voice/evaluation
stage merge voice/merged "${HIGGS[@]}" merge voice/runs/voice -o voice/merged
# The merged model has all that the base has.
rm -rf hub/models--*-base
stage convert voice/converted "${HIGGS[@]}" convert voice/merged -o voice/converted
rm -rf voice/converted
stage generate_merged voice/spoken_merged "${HIGGS[@]}" generate --model voice/merged --text "He was a young man." \
  --max-seconds 1 -o voice/spoken_merged
finish
