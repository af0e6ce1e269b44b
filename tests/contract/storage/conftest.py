"""A real S3 server (SeaweedFS) on loopback, and every store as one fixture."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from configs.settings import StorageSettings
from deployments.cli.demo import free_port
from deployments.storage.local import LocalStore
from deployments.storage.s3 import S3Store

PORTS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
    "filer.port.grpc", "s3.port", "s3.port.grpc", "admin.port", "admin.port.grpc",
)  # fmt: skip
FLAGS = (
    "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-webdav=false",
    "-s3.port.iceberg=0", "-s3.port.lance=0", "-admin.ui=false", "-s3.autoCreateBucket=false",
    "-master.volumeSizeLimitMB=16",
)  # fmt: skip


@dataclass(frozen=True)
class S3Server:
    endpoint_url: str
    access_key_id: str = "contract-key-id"
    secret_access_key: str = "contract-secret-that-no-message-may-hold"

    def settings(self, **changes) -> StorageSettings:
        return StorageSettings.model_validate(
            {
                "kind": "s3",
                "bucket": "pictures",
                "endpoint_url": self.endpoint_url,
                "access_key_id": self.access_key_id,
                "secret_access_key": self.secret_access_key,
                **changes,
            }
        )

    def client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=30),
        )


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    ports = dict.fromkeys(PORTS, 0)
    while len(set(ports.values())) < len(PORTS):
        ports = {name: free_port() for name in PORTS}
    server = S3Server(f"http://127.0.0.1:{ports['s3.port']}")
    weed = shutil.which("weed", path=str(Path(sys.executable).parent))
    command = [
        weed, f"-logdir={folder}", "mini", f"-dir={folder}", *FLAGS,
        *(f"-{name}={port}" for name, port in ports.items()),
        f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock",
    ]  # fmt: skip
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
    }
    with open(folder / "output.txt", "wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output
        )
    try:
        wait_for_bucket(server, process, folder / "output.txt")
        yield server
    finally:
        process.kill()  # asked politely it takes seconds
        process.wait()
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


def wait_for_bucket(server, process, output, within_s=300):
    client, deadline = server.client(), time.monotonic() + within_s
    while True:
        try:
            client.create_bucket(Bucket="pictures")
            client.put_object(Bucket="pictures", Key="ready", Body=b"")
        except Exception:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)
        else:
            client.delete_object(Bucket="pictures", Key="ready")
            client.close()
            return


@pytest.fixture
async def local_store(tmp_path):
    store = LocalStore(tmp_path / "objects", url_base="http://pictures.test")
    yield store
    await store.close()


@pytest.fixture
async def s3_store(s3_server, request):
    store = S3Store(s3_server.settings(prefix=f"{abs(hash(request.node.nodeid))}/"))
    yield store
    await store.close()


@pytest.fixture(params=["local", "s3"])
def store(request):
    return request.getfixturevalue(f"{request.param}_store")
