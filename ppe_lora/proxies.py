"""Which servers are reached without the proxy that the environment names."""

import os

_LOCAL = ("localhost", "127.0.0.1", "::1")


def spare_local_servers() -> None:
    """Have every library of this process and of its children reach servers of this machine past the proxy.

    Our own clients know that by themselves (`ppe_lora.network`); the Hub's and the trackers' go by NO_PROXY.
    """
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in known.split(",") if host.strip()]
    hosts += [host for host in _LOCAL if host not in hosts and "*" not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
