# The service: FastAPI and ONNX Runtime, no torch. Build from the root of the repository:
#   docker build -f deploy/service.Dockerfile -t evenkeel-service .
# With the CUDA and cuDNN libraries, from onnxruntime-gpu's own extras:
#   docker build -f deploy/service.Dockerfile --build-arg EXTRAS="service gpu" -t evenkeel-service:gpu .
# Run, with the root read-only:
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -v "$PWD/bundles:/bundles:ro" -v evenkeel:/state \
#     evenkeel-service serve /bundles/digits_lt
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
ARG EXTRAS="service"
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python -m venv /opt/evenkeel
# Dependencies before code: a change of code leaves this layer, by far the largest, as it is.
COPY pyproject.toml requirements.lock ./
COPY deploy/requirements_of.py deploy/
# Unquoted on purpose: one word an extra.
RUN python deploy/requirements_of.py ${EXTRAS} > requirements.txt \
    && /opt/evenkeel/bin/python -m pip install --constraint requirements.lock --requirement requirements.txt
# The code apart from them, with the metadata that says its version.
COPY README.md LICENSE ./
COPY service service
RUN python -m pip install --no-deps --target /app . && rm -rf /app/bin

FROM ${PYTHON_IMAGE}
ENV PATH=/opt/evenkeel/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    EVENKEEL_HOST=0.0.0.0 \
    EVENKEEL_PORT=8000 \
    EVENKEEL_DATABASE_URL=sqlite:////state/evenkeel.sqlite \
    # What NVIDIA's container runtime hands in; without that runtime the two mean nothing.
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build /opt/evenkeel /opt/evenkeel
COPY --from=build /app /app
WORKDIR /app
# Policies, kept predictions and labels: mount a volume here, or name a PostgreSQL. Without either, on a read-only root,
# nothing is kept, and the log says so.
RUN install -d -o 10001 -g 10001 -m 700 /state
# A number, because Kubernetes' runAsNonRoot cannot resolve a name. Nothing else in the image belongs to it: a process
# that is taken over cannot change the code.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['EVENKEEL_PORT'] + '/readyz', timeout=2)"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve", "/bundle"]
