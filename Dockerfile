# Three images: the gateway, which holds no TensorFlow, `--target build`, the build step,
# and `--target loadtest`, Locust with our users. The lock files name every package with its hash; all come as wheels.
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/blockserve/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BLOCKSERVE_REPOSITORY=/models
# A new volume takes the owner of the directory that it is mounted on.
RUN groupadd --gid 10001 blockserve \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home \
        --home-dir /tmp --shell /usr/sbin/nologin blockserve \
    && install --directory --owner=10001 --group=10001 /models

FROM base AS gateway-packages
# Where packages come from, if not from pip's default.
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_DEPS=1 \
    PIP_PYTHON=/opt/blockserve/bin/python \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY deploy/lock/gateway.txt deploy/lock/
RUN python -m venv --without-pip /opt/blockserve \
    && pip install --only-binary=:all: --require-hashes -r deploy/lock/gateway.txt

FROM gateway-packages AS wheel
COPY pyproject.toml README.md ./
COPY loadtest loadtest
COPY models models
COPY proto proto
COPY service service
RUN pip wheel --no-build-isolation --wheel-dir /wheel .

FROM gateway-packages AS build-packages
COPY deploy/lock/serve.txt deploy/lock/
RUN pip install --only-binary=:all: --require-hashes -r deploy/lock/serve.txt
COPY --from=wheel /wheel /wheel
RUN pip install /wheel/*.whl

FROM gateway-packages AS loadtest-packages
COPY deploy/lock/loadtest.txt deploy/lock/
RUN pip install --only-binary=:all: --require-hashes -r deploy/lock/loadtest.txt
COPY --from=wheel /wheel /wheel
RUN pip install /wheel/*.whl

FROM gateway-packages AS gateway-installed
COPY --from=wheel /wheel /wheel
RUN pip install /wheel/*.whl

FROM base AS build
# What the graph's wheel takes from the system, and a font to measure its text with.
# Debian has one version of each at a time, so there is none to name.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        fontconfig-config libglib2.0-0 libx11-6 libxext6 libxrender1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-packages /opt/blockserve /opt/blockserve
USER 10001:10001
ENTRYPOINT ["blockserve"]
CMD ["build"]

FROM base AS loadtest
ENV LOCUST_LOCUSTFILE=/source/loadtest/locustfile.py
COPY --from=loadtest-packages /opt/blockserve /opt/blockserve
COPY --from=wheel /source/loadtest/locustfile.py /source/loadtest/
USER 10001:10001
EXPOSE 8089
ENTRYPOINT ["locust"]
CMD ["--help"]

FROM base AS gateway
COPY --from=gateway-installed /opt/blockserve /opt/blockserve
USER 10001:10001
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["blockserve"]
CMD ["serve", "--host", "0.0.0.0"]
