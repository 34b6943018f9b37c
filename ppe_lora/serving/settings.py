"""How a server runs. Every default is safe on a shared machine: loopback only, bounded in size, time and number."""

import ipaddress

from pydantic import Field

from ppe_lora.section import Count, Section

API_KEY_VARIABLE = "PPE_LORA_API_KEY"


class Settings(Section):
    """The limits and habits of `ppe-lora serve`. The API key is no setting: it comes from the environment."""

    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine can reach anything but a loopback address."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes a free one."""
    default: str | None = None
    """Model that answers a request which names none; null is the first one."""
    shadow: str | None = None
    """Model that also answers every request which the default model answers, for the log only."""
    shadow_log: str = "shadow.jsonl"
    """File that both answers are appended to, with the request."""
    trace: str | None = None
    """Weave project, `entity/project`, that gets a trace of every answered request; null traces nothing."""
    trace_dir: str = "served_traces"
    """Folder in which traces wait until they are sent."""
    batch_rows: Count = 32
    """Waiting requests that are decoded together."""
    queue_rows: Count = 256
    """Requests that may wait for a model; more are answered with status 503."""
    answer_timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for an answer; status 504 beyond it."""
    read_timeout_s: float = Field(default=10.0, gt=0)
    """Longest wait for a client to send its request; status 408 beyond it, or a closed connection within headers."""
    write_timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for a client to read its answer; the connection is closed beyond it."""
    drain_s: float = Field(default=30.0, gt=0)
    """After SIGTERM, longest wait for running requests."""
    max_body_bytes: Count = 262_144
    max_connections: Count = 1024
    """Open connections, of which half of the process's descriptors may be fewer; idle ones make room for new ones."""
    requests_per_minute: Count | None = None
    """Of one client address; null does not limit it."""
    wrong_keys_per_minute: Count = 20
    """Of one client address; then it gets status 429, unless it has shown the right key before."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose `X-Forwarded-For` names the client; anybody else's is not read."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
