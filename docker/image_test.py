"""Starts the server of an unpacked image as the image says, as its user, on a root that is mounted read-only; asks it, and stops it."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

PICTURE = Path("tests/data/caltech101-val/sunflower/image_0003.jpg")
PORT = 18080


class Container:
    def __init__(self, root, config, data):
        self.config = config
        self.mounts = []
        user, _, group = config["User"].partition(":")
        os.chown(data, int(user), int(group or user))
        here = data.parent / "mounted"
        here.mkdir(exist_ok=True)
        self.mount("--bind", root, here)
        self.mount("--bind", "-o", "remount,ro", here)
        # What an engine gives too: devices, and the volume.
        self.mount("--rbind", "/dev", here / "dev")
        self.mount("-t", "proc", "proc", here / "proc")
        self.mount("--bind", data, here / "data")
        self.here = here

    def mount(self, *arguments):
        subprocess.run(["mount", *map(str, arguments)], check=True)
        if "remount,ro" not in arguments:
            self.mounts.append(arguments[-1])

    def close(self):
        for place in reversed(self.mounts):
            subprocess.run(["umount", "--recursive", "--lazy", str(place)], check=True)

    def start(self, command, **more):
        # chroot drops the rights of root, setpriv the way back to them.
        user = ["chroot", f"--userspec={self.config['User']}", str(self.here), "setpriv", "--no-new-privs"]
        environment = ["env", "--ignore-environment", *self.config["Env"], f"DINO_LISTEN=127.0.0.1:{PORT}"]
        return subprocess.Popen([*user, *environment, *self.config["Entrypoint"], *command], **more)

    def run(self, command):
        process = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said


def ask(path, body=None, accept="application/json"):
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data=body, headers={"Accept": accept})
    if body:
        request.add_header("Content-Type", "image/jpeg")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    config = json.loads(args.config.read_text())["Docker"]["config"]
    assert config["User"].split(":")[0] not in ("", "0", "root"), f"the image runs as {config['User']!r}"
    compilers = [name for name in ("cc", "gcc", "cargo", "rustc", "python3", "pip") for place in ("usr/bin", "usr/local/bin") if (args.root / place / name).exists()]
    assert not compilers, f"the image holds {compilers}"
    data = args.folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    container = Container(args.root, config, data)
    server = None
    try:
        code, said = container.run(["restore", "--from", "/usr/local/share/dino/demo/gallery.dino", "--if-missing"])
        assert code == 0, said
        began = time.monotonic()
        server = container.start(config["Cmd"])
        check = container.config["Healthcheck"]["Test"]
        assert check[:2] == ["CMD", "dino-server"], check
        while container.run(check[2:])[0] != 0:
            assert server.poll() is None, f"the server ended with {server.returncode}"
            assert time.monotonic() - began < 60, "the server is not ready after a minute"
            time.sleep(0.2)
        print(f"ready after {time.monotonic() - began:.1f} s")
        user = Path(f"/proc/{server.pid}/status").read_text().split("Uid:")[1].split()[0]
        assert user == config["User"].split(":")[0], f"it runs as {user}"
        picture = PICTURE.read_bytes()
        embedding = json.loads(ask("/embed", picture))
        assert len(embedding["embeddings"][0]) == embedding["dim"], embedding
        label = json.loads(ask("/classify", picture))["results"][0]["label"]
        assert label == "sunflower", label
        assert ask("/segment", picture, "image/png").startswith(b"\x89PNG")
        health = json.loads(ask("/healthz"))
        print(f"version {health['version']}, commit {health.get('commit')}: /embed, /classify ({label}) and /segment answer")
        server.send_signal(getattr(signal, config["StopSignal"]))
        assert server.wait(timeout=40) == 0, server.returncode
        print(f"{config['StopSignal']} ended it with 0")
    finally:
        if server and server.poll() is None:
            server.kill()
            server.wait()
        container.close()
    size = sum(file.lstat().st_size for file in args.root.rglob("*") if file.is_file() and not file.is_symlink())
    print(f"the image takes {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
