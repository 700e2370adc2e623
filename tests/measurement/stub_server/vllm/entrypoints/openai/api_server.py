"""A server of completions that answers each token after 5 ms, and misbehaves as the variable STUB_SERVER says.

die: ends after the first 20 requests. refuse: every third request gets status 500. slow: tokens take 0.5 s. deaf: never
gets ready. broken: ends before it is ready, as an engine without room for its cache. in-use: likewise, as its port was
taken meanwhile. hang-up: closes every connection after two tokens. mute: tells no token counts. chunky: three tokens an
event. busy: says that it still works on a request. full: cannot empty its prefix cache. in-turn: answers one request
after the other. unused: none of these.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODE = os.environ.get("STUB_SERVER", "")
STEP_S = 0.5 if MODE == "slow" else 0.005
TURN = threading.Lock() if MODE == "in-turn" else nullcontext()


class Counts:
    lock = threading.Lock()
    requests = running = tokens = prompts = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        pages = {
            "/health": "",
            "/version": '{"version": "0.0.stub"}',
            "/v1/models": '{"data": [{"id": "llem", "max_model_len": 64}]}',
            "/metrics": metrics(),
        }
        self.answer(pages.get(self.path, ""), 503 if MODE == "deaf" else 200)

    def do_POST(self) -> None:
        if self.path == "/reset_prefix_cache":
            known = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
            sys.stdout.write("reset\n")
            sys.stdout.flush()
            self.answer(json.dumps({"success": MODE != "full"}), 200 if known else 404)
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Counts.lock:
            Counts.requests += 1
            Counts.prompts += len(body["prompt"])
            number = Counts.requests
        if MODE == "die" and number > 20:
            sys.stdout.write("Fatal: the engine core has died\n")
            sys.stdout.flush()
            os._exit(3)
        if MODE == "refuse" and number % 3 == 0:
            self.answer('{"error": {"message": "the engine is sad"}}', 500)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        Counts.running += 1
        try:
            with TURN:
                self.stream(body)
        except OSError:
            self.close_connection = True
        finally:
            Counts.running -= 1

    def stream(self, body: dict[str, Any]) -> None:
        total, step = body["max_tokens"], 3 if MODE == "chunky" else 1
        for done in [*range(step, total, step), total]:
            time.sleep(STEP_S)
            Counts.tokens += step
            if MODE == "hang-up" and done > 2:
                self.close_connection = True
                return
            choice = {"index": 0, "text": "x", "finish_reason": "length" if done == total else None}
            self.event({"choices": [choice], "usage": usage(body, done)})
        self.event({"choices": [], "usage": usage(body, total)})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, event: dict[str, Any]) -> None:
        self.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def answer(self, text: str, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def usage(body: dict[str, Any], done: int) -> dict[str, int] | None:
    return None if MODE == "mute" else {"prompt_tokens": len(body["prompt"]), "completion_tokens": done}


def metrics() -> str:
    label = '{engine="0",model_name="llem"}'
    running = float(Counts.running + (MODE == "busy"))
    return (
        f"# HELP vllm:num_requests_running Running\nvllm:num_requests_running{label} {running}\n"
        f"vllm:num_requests_waiting{label} 0.0\nvllm:kv_cache_usage_perc{label} 0.25\n"
        f"vllm:num_preemptions_total{label} 1.0\nvllm:prompt_tokens_total{label} {float(Counts.prompts)}\n"
        f"vllm:generation_tokens_total{label} {float(Counts.tokens)}\n"
        'vllm:cache_config_info{block_size="16",kv_cache_size_tokens="4096"} 1.0\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    known, _ = parser.parse_known_args()
    if MODE == "broken":
        sys.stdout.write("ValueError: No available memory for the cache blocks. Try raising it.\n")
        sys.exit(1)
    if MODE == "in-use":
        sys.stdout.write("OSError: [Errno 98] Address already in use\n")
        sys.exit(1)
    ThreadingHTTPServer((known.host, known.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
