#!/usr/bin/env python3
"""Tests and measures on a machine with a GPU that is lent for minutes: everything is built and compiled before.

  gpu.py pack PACKED.tar.xz                    here, without a GPU: builds the programs and compiles every kernel they need
  gpu.py call1 PACKED.tar.xz OUT               on the machine with the GPU, in a checkout of the same commit, <= 270 s:
                                               are the kernels right, how long do steps of images and of 8 frames take
  gpu.py call2 PACKED.tar.xz OUT --after TAR   <= 300 s: red modules of the first call's archive again, sanitizers, PyTorch
                                               beside ours, 32 frames
  gpu.py report OUT                            one table of all archives in OUT, as OUT/README.md
  gpu.py rehearse                              both calls without a GPU, on the emulator and on stub libraries

A call leaves OUT/call1.tar.gz (or call2) with everything that was printed, and a summary beside it, also when it is stopped.
"""

import argparse, pathlib, sys

import gpu_call, gpu_pack, gpu_rehearse, gpu_report


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
        call.add_argument("--keep-going", action="store_true", help="also after a red gate")
        call.add_argument("--patience", type=float, default=1, help="multiplies all limits of time")
    commands.add_parser("report").add_argument("out", type=pathlib.Path)
    rehearse = commands.add_parser("rehearse")
    rehearse.add_argument("--features", help="take the workspace as it is built with these features")
    arguments = parser.parse_args()
    if arguments.command in gpu_call.CALLS:
        sys.exit(0 if gpu_call.Call(arguments.command, arguments).run() else 1)
    if arguments.command == "report":
        return gpu_report.write(arguments.out)
    if arguments.command == "pack":
        return gpu_pack.pack(arguments.packed.resolve())
    gpu_rehearse.rehearse(arguments.features)


if __name__ == "__main__":
    main()
