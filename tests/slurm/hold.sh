#!/bin/bash
# A job that holds its nodes for as many seconds as it is told, 60 when it is not.
sleep "${1:-60}"
