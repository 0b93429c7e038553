# toonstream serve in a container. On a CPU:
#   docker build -t toonstream .
# On an NVIDIA card, with torch's CUDA build and its libraries:
#   docker build -t toonstream:cuda --build-arg FLAVOUR=cuda .
#   docker run --gpus all …
# With podman or buildah, --format docker keeps the health check.

ARG FLAVOUR=cpu
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS cpu
# PyAV, OpenCV's headless build and OpenVINO bring their libraries along.

FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS cuda
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv python3-pip \
    && rm -rf /var/lib/apt/lists/* && python3 -m venv /opt/python
ENV PATH=/opt/python/bin:$PATH
RUN pip install --no-cache-dir "torch>=2.11,<2.14"

FROM ${FLAVOUR:-cpu}
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY stream stream
COPY export export
COPY engines engines
COPY server server
RUN pip install --no-cache-dir . && rm -rf /src/*

RUN useradd --create-home --uid 10001 toon
USER toon
# Before it is a volume: one that the engine makes belongs to root, and nothing could be kept there.
RUN mkdir -p /home/toon/.cache/toonstream
WORKDIR /home/toon
ENV TOONSTREAM_CACHE=/home/toon/.cache/toonstream PYTHONUNBUFFERED=1
VOLUME /home/toon/.cache/toonstream
EXPOSE 8080/tcp
# Pictures go over UDP, to ports that the system chooses: run with --network host, or with a TURN server.
HEALTHCHECK --start-period=120s CMD ["python3", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=3)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["toonstream", "serve"]
# Reachable from outside, so TOONSTREAM_TOKEN has to be set.
CMD ["--host", "0.0.0.0"]
