# The trainer: PyTorch with CUDA. Build from the root of the repository:
#   docker build -f deploy/trainer.Dockerfile -t evenkeel-trainer .
# Run as yourself, so that runs and bundles are yours:
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" -v "$PWD:/data" \
#     evenkeel-trainer train digits_lt --output runs/digits_lt
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python -m venv /opt/evenkeel
# Dependencies before code: a change of code leaves this layer, several gigabytes, as it is.
COPY pyproject.toml requirements.lock ./
COPY deploy/requirements_of.py deploy/
RUN python deploy/requirements_of.py trainer > requirements.txt \
    && /opt/evenkeel/bin/python -m pip install --constraint requirements.lock --requirement requirements.txt
# The code apart from them, with the metadata that says its version.
COPY README.md LICENSE ./
# The bundle contract and the trade-off live in `service`; the rules of imports keep the trainer from the rest of it.
COPY service service
COPY trainer trainer
RUN python -m pip install --no-deps --target /app . && rm -rf /app/bin

FROM ${PYTHON_IMAGE}
ENV PATH=/opt/evenkeel/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    # Caches of libraries go where any user may write.
    HF_HOME=/tmp/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build /opt/evenkeel /opt/evenkeel
COPY --from=build /app /app
# Relative paths on the command line (--output runs/...) land in what is mounted here.
WORKDIR /data
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "trainer"]
CMD ["--help"]
