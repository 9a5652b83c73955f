#!/usr/bin/env bash
# Starts or restarts one virtual node of the cluster in FOLDER: tests/slurm/node.sh FOLDER NAME
set -euo pipefail
folder=$1 name=$2
mkdir -p "$folder/spool/$name" "$folder/tmp/$name"
exec unshare --uts sh -c "hostname $name && exec /usr/sbin/slurmd -N $name -f '$folder/slurm.conf'"
