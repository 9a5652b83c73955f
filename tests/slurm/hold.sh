#!/bin/bash
# Batch job that occupies its nodes for a number of seconds: hold.sh [SECONDS], by default 60.
sleep "${1:-60}"
