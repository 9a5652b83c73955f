#!/usr/bin/env python3
"""Tests and measures the kernels on a GPU machine that is available for minutes only. Everything is
built and compiled in advance.

  gpu.py pack PACKED.tar.xz
      here, without a GPU: builds the programs and compiles every kernel they need
  gpu.py call1 PACKED.tar.xz OUT
      on the GPU machine, in a checkout of the same commit, at most 270 s: tests the kernels, and
      times steps of images and of 8 frames
  gpu.py call2 PACKED.tar.xz OUT --after TAR
      on the GPU machine, at most 300 s: repeats modules that failed in the first call's archive,
      runs sanitizers, compares with PyTorch, and times steps of 32 frames
  gpu.py report OUT
      writes one table of all archives in OUT to OUT/README.md
  gpu.py rehearse
      runs both calls without a GPU, with fake programs, on the emulator and on stub libraries
  gpu.py rehearse --fakes
      runs only the calls with fake programs, for which nothing is built; takes a minute

A call writes everything that was printed to OUT/call1.tar.gz (or call2) and a summary beside it,
even if it is stopped.
"""

import argparse, pathlib, sys

import gpu_call, gpu_fakes, gpu_pack, gpu_rehearse, gpu_report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack")
    pack.add_argument("packed", type=pathlib.Path)
    for name in gpu_call.CALLS:
        call = commands.add_parser(name)
        call.add_argument("packed", type=pathlib.Path)
        call.add_argument("out", type=pathlib.Path)
        call.add_argument("--after", type=pathlib.Path, required=name == "call2", help="archive of the first call")
        call.add_argument("--small", action="store_true", help="tiny sizes, which only show that everything runs")
        call.add_argument("--emulated", action="store_true", help="tiny sizes on an emulated GPU")
        call.add_argument("--keep-going", action="store_true", help="continue after a failed gate")
        call.add_argument("--patience", type=float, default=1, help="factor for all time limits")
    commands.add_parser("report").add_argument("out", type=pathlib.Path)
    rehearse = commands.add_parser("rehearse")
    rehearse.add_argument("--features", help="use the workspace that was built with these features")
    rehearse.add_argument("--fakes", action="store_true", help="only the calls with fake programs")
    arguments = parser.parse_args()
    if arguments.command in gpu_call.CALLS:
        sys.exit(0 if gpu_call.Call(arguments.command, arguments).run() else 1)
    if arguments.command == "report":
        return gpu_report.write(arguments.out)
    if arguments.command == "pack":
        return gpu_pack.pack(arguments.packed.resolve())
    gpu_fakes.rehearse()
    if not arguments.fakes:
        gpu_rehearse.rehearse(arguments.features)


if __name__ == "__main__":
    main()
