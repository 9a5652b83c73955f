#!/bin/bash
# A fake mpirun: starts N workers and, like OpenMPI, kills all of them if one fails or on TERM.
[ "$1" = --version ] && echo "fake 1.0" && exit
while [ "$1" != -np ]; do shift; done
size=$2
shift 2
pids=()
for ((rank = 0; rank < size; rank++)); do
  FAKE_RANK=$rank FAKE_SIZE=$size "$@" &
  pids+=($!)
done
trap 'kill -9 "${pids[@]}"; exit 143' TERM
for ((rank = 0; rank < size; rank++)); do
  wait -n || { code=$?; kill -9 "${pids[@]}" 2> /dev/null; exit $code; }
done
