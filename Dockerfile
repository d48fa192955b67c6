# syntax=docker/dockerfile:1
# Higgs Trainer for NVIDIA GPUs. docs/docker.md says how to build and run it, and what was not run.
#
# torch's wheels bring CUDA, so the base image needs none: the driver comes from the host.
# Pin the base by digest for a build that must not change: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS wheels
WORKDIR /source
COPY constraints.txt .
# Build the three packages. The build tools are pinned by constraints.txt.
ENV PIP_CONSTRAINT=/source/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
COPY packages packages
COPY pyproject.toml README.md LICENSE THIRD_PARTY_NOTICES.md CHANGELOG.md ./
COPY recipes recipes
COPY src src
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheels ./packages/label-guard ./packages/higgs-trainer-demo .

FROM ${BASE} AS environment
# The version that the tests run with. The wheel on PyPI is built for CUDA 13.
ARG TORCH="torch==2.13.0"
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/venv
# The largest layer comes first and changes least.
RUN --mount=type=cache,target=/root/.cache/pip /opt/venv/bin/pip install ${TORCH}
COPY constraints.txt /tmp/
# Everything but torch at the versions of constraints.txt. pip check ends the build if two packages do not fit.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    grep -v '^torch==' /tmp/constraints.txt > /tmp/pinned.txt && \
    /opt/venv/bin/pip install -c /tmp/pinned.txt /wheels/label_guard-*.whl \
        /wheels/higgs_trainer_demo-*.whl \
        "$(echo /wheels/higgs_trainer-*.whl)[demo,evaluate,loudness,numbers,tensorboard]" && \
    /opt/venv/bin/pip check

FROM ${BASE}
# --gpus all gives the container these; a host with the older runtime reads them from here.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV PATH=/opt/venv/bin:${PATH} PYTHONUNBUFFERED=1 HF_HOME=/cache
RUN useradd --uid 1000 --create-home trainer && \
    mkdir /cache /work && chown trainer:trainer /cache /work
COPY --from=environment /opt/venv /opt/venv
USER trainer
WORKDIR /work
ENTRYPOINT ["higgs-trainer"]
CMD ["--help"]
