#!/usr/bin/env bash
# Trains a tiny VL-JEPA on two ranks of this machine, kills one rank during the training, and asks
# the trained model questions.
#   recipes/quickstart.sh [RUN_DIRECTORY] [more options of vljepa-launch]
set -euo pipefail
cd "$(dirname "$0")/.."
. recipes/install.sh

run=${1:-runs/quickstart}
[ $# -eq 0 ] || shift
cargo build --release --workspace --features "$features"
"$programs/vljepa-shards" synth datasets/quickstart
"$programs/vljepa-shards" synth-stream datasets/quickstart_stream     # for quickstart_decoder.yaml

"$programs/vljepa-launch" recipes/quickstart.yaml --run "$run" "$@" &
launcher=$!
# The terminal sends Ctrl-C to the launcher too, which saves and exits.
trap 'wait $launcher; exit 130' INT
trap 'kill -TERM $launcher; wait $launcher; exit 143' TERM

# Kills one rank after the first checkpoint. The run must detect it, report it and continue from the
# checkpoint by itself.
while kill -0 $launcher 2>/dev/null && [ ! -f "$run/completed.json" ]; do
  if compgen -G "$run/checkpoints/step-*" >/dev/null; then
    sleep 3
    victim=$(pgrep -f "^[^ ]*vljepa-worker run --run $run" | tail -n 1 || true)
    if [ -n "$victim" ]; then
      echo "quickstart: kill -9 $victim (one of the two ranks); training must continue by itself"
      kill -9 "$victim"
    fi
    break
  fi
  sleep 0.2
done
wait $launcher

clip=$run/try-me.mp4
tar -xOf datasets/quickstart/eval/heldout.tar heldout-000000.mp4 >"$clip"
tar -xOf datasets/quickstart_stream/stream.tar stream-000000.mp4 >"$run/watch-me.mp4"
"$programs/vljepa-launch" ask "$run" "$clip" "how is it moving?" \
  --answers "moving left,moving right,moving up,moving down,growing,shrinking"
"$programs/vljepa-launch" search "$run" datasets/quickstart/eval/retrieval.tar "a red circle moving left" --limit 5
echo "quickstart: the scores are in $run/scores.json, images and curves in $run/report.html"
