# vprompt on a CPU, serving the artefacts of /pool. docs/packaging.md shows how to build and run it.
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    VPROMPT_CACHE=/home/vprompt/cache \
    OMP_WAIT_POLICY=PASSIVE
RUN useradd --create-home --uid 1000 vprompt && mkdir /pool && chown vprompt:vprompt /pool
COPY requirements /requirements
COPY --from=build /wheels /wheels
# The CPU build of PyTorch first, so that nothing brings the GPU libraries along.
RUN python -m pip install --index-url https://download.pytorch.org/whl/cpu \
        --constraint /requirements/constraints.txt torch torchvision \
    && python -m pip install --constraint /requirements/constraints.txt \
        --find-links /wheels 'vprompt[demo,onnx,serve]==0.1.0' \
    && python -m pip install --no-deps --require-hashes --requirement /requirements/demo.txt
USER 1000:1000
WORKDIR /home/vprompt
VOLUME /pool
EXPOSE 8000
# Asks the server; other commands of this image are run with --no-healthcheck.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["vprompt"]
CMD ["serve", "/pool", "--host", "0.0.0.0", "--port", "8000"]
