"""Generates `seckill/wire` from `proto/`; with `--check`, fails when the committed code is not what it would write.

The proto path maps `proto/` to the virtual folder `seckill/wire`, so that the generated imports are absolute.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ("dtmgimp", "order", "orderclient", "product", "productclient", "seckill")
INIT = '"""Generated protobuf code; written by `make proto`, never edited."""\n'


def generate(out: Path) -> None:
    include = Path(grpc_tools.__file__).parent / "_proto"
    beside_python = Path(sys.executable).parent  # where the plugins are, also when no environment is activated
    arguments = [
        "protoc",
        *(f"--plugin={name}={beside_python / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
        f"--proto_path=seckill/wire={ROOT / 'proto'}",
        f"--proto_path={include}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *(f"seckill/wire/{name}.proto" for name in PROTOS),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    (out / "seckill" / "wire" / "__init__.py").write_text(INIT)


def main() -> None:
    committed = ROOT / "seckill" / "wire"
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.name: path.read_text() for path in (Path(folder) / "seckill" / "wire").iterdir()}
    if "--check" in sys.argv[1:]:
        present = {path.name: path.read_text() for path in committed.iterdir() if path.is_file()}
        stale = sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))
        if stale:
            raise SystemExit(f"generated code is out of date, run `make proto`: {', '.join(stale)}")
        return
    committed.mkdir(exist_ok=True)
    for path in committed.iterdir():
        if path.is_file():
            path.unlink()
    for name, text in fresh.items():
        (committed / name).write_text(text)


if __name__ == "__main__":
    main()
