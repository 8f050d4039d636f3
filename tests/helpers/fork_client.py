"""Ask fork_server.py to run a module: FOLDER {PYTHON,DVC} [ARGUMENT ...].

Imports little, because it starts hundreds of times.
"""

import json
import os
import socket
import sys

_, folder, program, *arguments = sys.argv
if program.endswith("/dvc"):
    asked = ["dvc", *arguments]
else:
    asked = arguments[1:] if arguments[:1] == ["-m"] else []
if asked:
    request = {
        "folder": os.getcwd(),  # noqa: PTH109
        "environment": dict(os.environ),
        "arguments": asked,
    }
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.connect(f"{folder}/socket")
            socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
            answer = server.recv(100).decode()
    except OSError:
        answer = ""
    if not answer:
        sys.exit("the fork server has ended")
    if answer != "real":
        code = int(answer)
        os._exit(code if code >= 0 else 128 - code)
os.execv(program, [program, *arguments])  # noqa: S606
