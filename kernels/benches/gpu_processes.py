"""The programs that a call of gpu.py starts, each with a time limit, and the records of what they
print."""

import contextlib, json, os, signal, subprocess, threading, time

import gpu_report
from gpu_report import TIME_UP

# Seconds that a killed process may take to exit. The driver first stops what it runs on the GPU.
KILL_SECONDS = 5


class Processes:
    """Starts programs in a folder, and records their outcomes and output in its folder `results`.

    `deadline` and `end` are times after which no program runs. `patience` is a factor for all
    seconds."""

    def __init__(self, call, folder, end, patience):
        self.name, self.phase, self.patience = call, "start", patience
        self.deadline = self.end = end
        self.folder, self.results = folder, folder / "results"
        self.results.mkdir()
        self.lock, self.running = threading.RLock(), set()
        self.env = dict(os.environ)

    def note(self, **line):
        """Adds a line to the results, and prints it unless it repeats the output of a program."""
        line = {"call": self.name, "phase": self.phase, **line}
        with self.lock:
            with open(self.results / "results.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
            if "program" not in line:
                try:
                    print(json.dumps(line)[:400], flush=True)
                except OSError:
                    pass  # Nobody reads the output any more; the archive has it.

    def left(self):
        return min(self.deadline, self.end) - time.monotonic()

    def log(self, name):
        return self.results / f"{name.replace('::', '.')}.txt"

    def start(self, name, command, seconds=None, rows=None, quiet=None, **env):
        """Runs a program until its time limit; its output goes to files. If `rows` is a dictionary,
        the program's lines of JSON become results that also have its entries. With `quiet`, the
        program is stopped when it has printed nothing for so many seconds.

        Returns its exit status, `TIME_UP` if it was stopped, or `None` if it could not start."""
        seconds = min(self.left(), seconds or float("inf"))
        if seconds < min(1, self.patience):
            self.note(what="process", name=name, rc=None, failed="no time left")
            return None
        log, since = self.log(name), time.monotonic()
        printed = log if rows is None else log.with_suffix(".jsonl")
        command, env = [str(word) for word in command], {**self.env, **env}
        with open(log, "w") as errors, contextlib.nullcontext(errors) if rows is None else open(printed, "w") as output:
            streams = dict(stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
            try:
                process = subprocess.Popen(command, env=env, cwd=self.folder, start_new_session=True, **streams)
            except OSError as error:
                self.note(what="process", name=name, rc=None, failed=f"{command[0]} does not start: {error}")
                return None
            self.running.add(process)
            try:
                rc, why = self.wait(process, seconds, printed, quiet)
            finally:
                self.kill(process)
        if rows is not None:
            for line in gpu_report.parse(printed.read_text(errors="replace")):
                self.note(**{**rows, **line, "program": name})
        failed = {} if rc == 0 else {"failed": why or failure_lines(log) or f"exit status {rc}, without a message"}
        self.note(what="process", name=name, rc=rc, seconds=round(time.monotonic() - since, 1), **failed)
        return rc

    def wait(self, process, seconds, printed, quiet):
        """Waits until a program ends or must be stopped. Returns its exit status, and why it must
        be stopped."""
        start = grown = time.monotonic()
        size = 0
        while True:
            try:
                return process.wait(0.2), None
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if printed.stat().st_size != size:
                size, grown = printed.stat().st_size, now
            if now > min(start + seconds, self.end):
                return TIME_UP, "time is up"
            if quiet and now - grown > quiet * self.patience:
                return TIME_UP, f"it printed nothing for {now - grown:.0f} s"

    def kill(self, process):
        """Kills a process and all that it started. A process that does not exit is left behind."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self.note(what="process", name=process.args[0], rc=None, failed=f"it still ran {KILL_SECONDS} s after SIGKILL")
        self.running.discard(process)


def failure_lines(log):
    """The panics in a log, each with the line that states its reason, or else the last lines of the
    log."""
    lines = log.read_text(errors="replace").strip().splitlines()
    panics = [" ".join(lines[i : i + 2])[:300] for i, line in enumerate(lines) if "panicked at" in line]
    return panics[:4] or lines[-3:]
