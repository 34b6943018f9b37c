# One image for training and export on a GPU.
#
#   docker build -t ppe-lora .
#   docker run --gpus all -v "$PWD/data:/app/data" -v "$PWD/checkpoints:/app/checkpoints" \
#     -v ppe-lora-models:/app/models ppe-lora run recipes/mistral_7b_qlora.yaml
#
# The mounted folders must be writable for user 1001. A gated model needs `-e HF_TOKEN`.
FROM nvidia/cuda:13.0.2-runtime-ubuntu24.04

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HOME=/app/models \
    PATH=/opt/venv/bin:$PATH

# Exact versions of Ubuntu packages vanish from its mirrors when a security update replaces them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && useradd --uid 1001 --create-home --shell /usr/sbin/nologin ppe

WORKDIR /app

# The dependencies, a layer of several gigabytes, are made again only when one of these two files changes.
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
      > /tmp/requirements.txt \
    && pip install -c constraints.txt -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt

COPY README.md LICENSE ./
COPY configs configs
COPY recipes recipes
COPY ppe_lora ppe_lora
RUN pip install --no-deps . \
    && mkdir -p data checkpoints models \
    && chown ppe:ppe data checkpoints models

USER 1001
VOLUME ["/app/data", "/app/checkpoints", "/app/models"]

ENTRYPOINT ["accelerate", "launch", "-m", "ppe_lora"]
CMD ["--help"]
