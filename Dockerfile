# One image, two flavours, chosen by where torch comes from:
#   docker build -t lorry .
#   docker build -t lorry:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# CUDA's libraries come with torch's own wheels, so both flavours start from the same small base.
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
# A compiler for Lorry's own step; it stays in this stage.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# torch first and alone: the layer survives every change of our own code.
COPY constraints.txt ./
RUN python -m venv /opt/lorry \
    && /opt/lorry/bin/pip install --no-deps --index-url "${TORCH_INDEX}" \
        "$(grep '^torch==' constraints.txt)"
# Then everything else that Lorry needs, as a layer of its own, without what nothing here runs: torch's own
# tests and headers, other makers' GPU kernels, and CUDA's where torch has none.
COPY pyproject.toml ./
# hadolint ignore=DL3003,DL3042
RUN /opt/lorry/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > dependencies.txt \
    && /opt/lorry/bin/pip install --constraint constraints.txt --requirement dependencies.txt \
    && cd "$(/opt/lorry/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && rm -rf torch/test torch/include torch/bin/{protoc*,*Test,test_*} bitsandbytes/libbitsandbytes_{rocm,xpu}*.so \
    && case "${TORCH_INDEX}" in */cpu) rm -f bitsandbytes/libbitsandbytes_cuda*.so ;; esac
COPY README.md LICENSE ./
COPY server/build_compiled.py server/
COPY server/lorry server/lorry
COPY adapters adapters
RUN /opt/lorry/bin/pip install --no-deps .

FROM python:${PYTHON_VERSION}-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# bitsandbytes' CPU library is linked against the system's OpenMP. On a GPU, Triton compiles at run time.
# hadolint ignore=DL3008
RUN apt-get update \
    && case "${TORCH_INDEX}" in */cpu) set -- libgomp1 ;; *) set -- libgomp1 gcc libc6-dev ;; esac \
    && apt-get install -y --no-install-recommends "$@" \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 lorry \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home \
        --shell /usr/sbin/nologin lorry \
    && install -d -o lorry -g lorry /data /data/models
COPY --from=build /opt/lorry /opt/lorry
ENV PATH=/opt/lorry/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LORRY_HOST=0.0.0.0 \
    LORRY_PORT=8000 \
    LORRY_HOME=/data
USER 10001:10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8000
# The first start fetches and converts the default model. No curl in a small image.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import os; from urllib.request import urlopen; urlopen(f'http://127.0.0.1:{os.environ[\"LORRY_PORT\"]}/health', timeout=4)"]
ENTRYPOINT ["lorry"]
CMD ["serve"]
