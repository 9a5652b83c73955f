#!/bin/bash
# A fake worker that speaks the protocol and runs the bash code in `scenario.sh` beside it.
here=$(dirname "$0")
if [ "$1" = --features ]; then cat "$here/features.json"; exit; fi
# The state of the recipe's files is in `inputs.json`, if it is not good.
if [ "$1" = inputs ]; then
  echo "$*" >> "$here/inputs.log"
  cat "$here/inputs.json" 2>/dev/null || echo '{"problems":[],"warnings":[]}'
  exit
fi
while [ $# -gt 0 ]; do
  case $1 in --run) run=$2; shift ;; --job) job=$2; shift ;; --control) control=$2; shift ;; esac
  shift
done
# Every check passes, except those named in the file `unhealthy` beside this one.
if grep -q '"job": *"check"' "$job"; then
  echo "$run" >> "$here/checks.log"
  for check in binary recipe clock device cpus run_directory room shared_memory shards control; do
    grep -qs "$check" "$here/unhealthy" && passed=false || passed=true
    echo "{\"host\":\"here\",\"check\":\"$check\",\"passed\":$passed,\"detail\":\"as told\",\"time_s\":$(date +%s)}"
  done
  exit
fi
rank=${FAKE_RANK:-${VLJEPA_RANK:-0}}
size=${FAKE_SIZE:-${VLJEPA_WORLD_SIZE:-1}}
attempt=$(grep -o '"attempt": *[0-9]*' "$job" | grep -o '[0-9]*$')
token=$VLJEPA_TOKEN
recipe_hash=$(grep -o '"recipe_hash": *"[0-9a-f]*"' "$run/run.json" | grep -o '[0-9a-f]\{64\}')
log="$run/logs/rank-$(printf %04d "$rank")-attempt-$attempt.log"
echo "$$" >> "$run/pids"

say() { printf '%s\n' "$1" >&3; }
hello() {
  exec 3<> "/dev/tcp/${control%:*}/${control##*:}"
  say "{\"message\":\"hello\",\"token\":\"$token\",\"rank\":$rank,\"world_size\":$size,\"host\":\"here\",\"pid\":$$,\"device\":\"fake\",\"build\":\"1\",\"recipe_hash\":\"$recipe_hash\"}"
  read -r answer <&3
  echo "$answer" >> "$log"
}
# beat STEP PHASE [COLLECTIVE KIND WORK]
beat() {
  more=${3:+",\"collective\":$3,\"inside\":${4:-null},\"work\":${5:-0}"}
  say "{\"message\":\"heartbeat\",\"step\":$1,\"phase\":\"$2\"$more}"
}
metrics() {
  line="{\"step\":$1,\"total_steps\":10,\"stage\":\"only\",\"samples\":$(($1 * 8)),\"loss\":${loss:-0.5},\"gradient_norm\":1.0,\"learning_rate\":0.001,\"scale\":14.0,\"samples_per_s\":100.0,\"data_wait_fraction\":0.0,\"bad_samples\":0,\"phase_s\":{\"forward\":0.1},\"time\":\"$(date -u +%FT%T.%3NZ)\"}"
  echo "$line" >> "$run/metrics.jsonl"
  say "{\"message\":\"metrics\",${line#\{}"
}
# interval STEP DATA_S FORWARD_S: reports ten steps with the given seconds in each phase.
interval() {
  say "{\"message\":\"interval\",\"step\":$1,\"steps\":10,\"seconds\":$3,\"phase_s\":{\"data\":$2,\"forward\":$3,\"collective\":0.5},\"tflops\":0.5,\"memory_mib\":$((100 + rank)),\"device_memory_mib\":null}"
}
saved() {
  mkdir -p "$run/checkpoints/step-0000000$1"
  say "{\"message\":\"saved\",\"step\":$1,\"name\":\"step-0000000$1\",\"stall_s\":0.01,\"durable_s\":0.02}"
}
step() {
  for phase in data forward collective backward optimizer; do beat "$1" $phase; done
  [ "$rank" = 0 ] && metrics $(($1 + 1))
}
# Shuts down sending and reads to the end, like the real worker. The kernel holds a line back until
# the supervisor has acknowledged the line before it. A process that ends with unread messages, or
# receives some after its end, resets the connection and loses the lines that are held back.
close_connection() {
  perl -e '
    open(my $socket, "+<&=", 3);
    shutdown($socket, 1);
    alarm 20;
    1 while sysread($socket, my $rest, 4096);
  '
}
finished() {
  say "{\"message\":\"finished\",\"outcome\":\"$1\",\"step\":$2}"
  close_connection
}
complete() {
  [ "$rank" = 0 ] && echo "{\"step\":10,\"recipe_hash\":\"$recipe_hash\"}" > "$run/completed.json"
  finished completed 10
}
. "$here/scenario.sh"
