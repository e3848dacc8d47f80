"""Servers of object storage on this machine, which tests stop and start again."""

import http.server
import threading

import boto3
import requests
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

from helpers.programs import free_port
from mlstm_jax import storage

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "bucket"


def write(path, data):
    """Put an object where a mirror stands for, past what is written there otherwise."""
    system, key = storage._at(path)
    system.pipe_file(key, data)


class Servers:
    """A server of each kind, with one bucket; what is in it outlives a stop."""

    def __init__(self, folder):
        self.folder, self.ports = folder, {"gs": free_port(), "s3": free_port()}
        self.running = {}
        self.environment = {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self.ports['gs']}",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['s3']}",
            **KEYS,
        }
        for scheme in self.ports:
            self.start(scheme)
        names = dict(zip(("aws_access_key_id", "aws_secret_access_key", "region_name"), KEYS.values(), strict=True))
        boto3.client("s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], **names).create_bucket(Bucket=BUCKET)

    def start(self, scheme):
        port = self.ports[scheme]
        if scheme == "gs":
            server = create_server("127.0.0.1", port, default_bucket=BUCKET, data_dir=str(self.folder))
        else:
            server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        server.start()
        self.running[scheme] = server

    def stop(self, scheme):
        self.running.pop(scheme).stop()

    def close(self):
        for scheme in list(self.running):
            self.stop(scheme)

    def require_keys(self, required):
        """Whether S3 takes known keys only from now on; ours are not known."""
        count = "0" if required else "inf"
        requests.post(f"{self.environment['AWS_ENDPOINT_URL']}/moto-api/reset-auth", data=count.encode(), timeout=10)


class Denying(http.server.BaseHTTPRequestHandler):
    """Lets nobody in."""

    def do_GET(self):
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_):
        pass


def denying():
    """A server that lets nobody in, and its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Denying)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"
