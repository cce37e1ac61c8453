"""libjpeg's warnings are counted, and all else that is written to standard error comes out as before."""

import os
import pathlib
import pty
import signal
import subprocess
import sys
import time

import pytest

from mixer.runtime import libjpeg_lines

ROOT = pathlib.Path(__file__).resolve().parents[2]

COMMAND = """
import faulthandler, os, signal, subprocess, sys, time
from mixer.runtime import libjpeg_lines, streams

streams.open_missing()
with libjpeg_lines.counted():
    faulthandler.enable()  # as absl does
    libjpeg_lines.begin()
    {body}
"""


def code(body: str) -> str:
    return COMMAND.format(body=body.replace("\n", "\n    "))


def started(body: str, **options) -> subprocess.Popen:
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", code(body)], cwd=ROOT, **given)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


WARNINGS = b"""\
Corrupt JPEG data: 29 extraneous bytes before marker 0xd9
Corrupt JPEG data: 7 extraneous bytes before marker 0xc4
Corrupt JPEG data: premature end of data segment
Corrupt JPEG data: bad Huffman code
Corrupt JPEG data: found marker 0xd9 instead of RST3
Premature end of JPEG file
Invalid SOS parameters for sequential JPEG
Inconsistent progression sequence for component 1 coefficient 12
Unknown Adobe color transform code 7
Warning: unknown JFIF revision number 2.01
"""


def test_warnings_are_counted_by_kind_and_other_lines_pass():
    status, _, err = ended(
        started(f"""os.write(2, b'before\\n')
os.write(2, {WARNINGS!r})
for line in {WARNINGS!r}.splitlines(keepends=True)[:3]:
    os.write(2, line)
os.write(2, b'It says Premature end of JPEG file\\nPremature end of JPEG files\\nlast')""")
    )
    assert status == 0
    assert err == (
        "before\nIt says Premature end of JPEG file\nPremature end of JPEG files\nlast"
        "libjpeg warned of 13 decoded images: extraneous bytes before marker (4), premature end of data segment (2), "
        "bad Huffman code (1), found marker instead of RST (1), Premature end of JPEG file (1), Invalid SOS parameters "
        "for sequential JPEG (1), Inconsistent progression sequence for component coefficient (1), Unknown Adobe color "
        "transform code (1), unknown JFIF revision number (1); see docs/data.md\n"
    )


ENDS = {  # what the command does -> its status, and what it says besides
    "pass": (0, ""),
    "sys.exit(75)": (75, ""),
    "sys.exit('error: a reason')": (1, "error: a reason\n"),
    "os._exit(3)": (3, None),
    "os.kill(os.getpid(), signal.SIGKILL)": (-9, None),
    "os.write(2, b'last words'); os.abort()": (-6, None),
    "faulthandler.disable(); os.kill(os.getpid(), signal.SIGTERM)": (-15, None),
    # A process that goes on with the descriptor keeps nobody waiting.
    "subprocess.Popen(['sleep', '3'], stdout=subprocess.DEVNULL)": (0, ""),
    # The filter outlives what is sent to the whole job; also where nobody lets the command know.
    "[os.kill(int(line.split()[0]), number) for line in subprocess.check_output(['ps', '-o', 'pid=', '--ppid', "
    "str(os.getpid())]).splitlines()[:1] for number in (1, 2, 10, 12, 15)]": (0, ""),
}


def test_the_status_is_the_commands_own():
    warning = "os.write(2, b'Premature end of JPEG file\\n'); time.sleep(0.5)\n"
    since = time.monotonic()
    processes = {body: started(warning + body) for body in ENDS}
    line = "libjpeg warned of 1 decoded image: Premature end of JPEG file (1); see docs/data.md\n"
    for body, (status, said) in ENDS.items():
        if "sleep" in body.split("\n")[-1]:
            assert processes[body].wait(timeout=60) == status, body
            assert time.monotonic() - since < 60
        code, _, err = ended(processes[body])
        assert code == status, body
        if said is not None:
            assert err == line + said, body
        assert "Premature end of JPEG file\n" not in err.replace(line, "")
        if "last words" in body:
            assert "last words" in err
            # faulthandler's, which goes past the filter in several pieces, between which the filter may write
            assert "Fatal Python error: Aborted" in err.replace("last words", "")


def test_on_a_terminal_parts_of_lines_pass_at_once():
    leader, follower = pty.openpty()
    process = started(
        "print(sys.stderr.isatty(), file=sys.stderr, flush=True)\nos.write(2, b'half a line')\ninput()",
        stdin=subprocess.PIPE, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    seen = b""
    while not seen.endswith(b"half a line"):
        seen += os.read(leader, 1000)
    assert seen == b"True\r\nhalf a line"
    process.communicate(b"\n", timeout=60)
    os.close(leader)
    assert process.returncode == 0


@pytest.mark.parametrize("error", ["OSError('no more processes')", "NotImplementedError('setsid')"])
def test_where_no_filter_can_be_started_all_lines_are_seen_and_nothing_stays_open(error):
    patched = code(f"""os.write(2, {WARNINGS!r})
assert len(os.listdir('/dev/fd')) == before
sys.exit(3)""").replace(
        "    libjpeg_lines.begin()\n",
        f"    def refuse(*_, **__): raise {error}\n"
        "    os.posix_spawn = refuse\n"
        "    before = len(os.listdir('/dev/fd'))\n"
        "    libjpeg_lines.begin()\n",
    )
    assert "refuse" in patched
    done = subprocess.run([sys.executable, "-c", patched], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", WARNINGS)


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_a_standard_error_that_takes_nothing_stops_nobody(closed):
    body = "time.sleep(0.5)\nfor _ in range(3000):\n    os.write(2, b'x' * 100 + b'\\n')"
    done = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code(body)], cwd=ROOT, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0


def test_a_standard_error_of_someone_else_stays(capsys):
    with libjpeg_lines.counted():
        libjpeg_lines.begin()
        os.write(2, b"Premature end of JPEG file\n")
        print("words", file=sys.stderr)
    assert capsys.readouterr().err == "words\n"


def test_ctrl_c_ends_the_command_and_not_the_filter():
    process = started(
        "try:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    os.write(2, b'mine\\n')",
        start_new_session=True,
    )
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process) == (0, "", "mine\n")
