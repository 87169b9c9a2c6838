# syntax=docker/dockerfile:1
# One image for every role: `docker run seckill front`, `… worker`, `… product`, `… order`, `… reconcile`, `… coordinator`,
# `… dead-letters`, `… alerts`.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/seckill
# Everything that is installed is named with its hash. Dependencies first: they change less often than our code.
COPY requirements.lock requirements-build.lock ./
RUN /opt/seckill/bin/pip install --require-hashes --only-binary :all: -r requirements.lock \
 && python -m pip install --require-hashes --only-binary :all: -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY config/embedded.toml config/embedded.toml
COPY seckill seckill
COPY consumers consumers
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && /opt/seckill/bin/pip install --no-deps --no-index dist/*.whl \
 && /opt/seckill/bin/pip uninstall --yes pip setuptools

FROM python:3.11-slim-bookworm
# A number, so that Kubernetes' runAsNonRoot can tell; no home, no shell.
RUN groupadd --gid 10001 seckill \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin seckill
COPY --from=build /opt/seckill /opt/seckill
ENV PATH=/opt/seckill/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["seckill"]
CMD ["--help"]
