# CPU:   docker build --tag softtrunc .
# CUDA:  docker build --tag softtrunc:cuda --build-arg BASE=pytorch/pytorch:2.7.1-cuda12.8-cudnn9-runtime .
# Run:   docker run --rm --volume "$PWD:/work" softtrunc sample fashion16 -n 64
#        docker run --rm --gpus all --volume "$PWD:/work" softtrunc:cuda train folder-32 --data pictures
ARG BASE=python:3.12-slim

FROM python:3.12-slim AS wheel
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM ${BASE}
# Where PyTorch comes from, for a base that has none.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore
RUN python -c "import torch" 2>/dev/null || python -m pip install --index-url ${TORCH_INDEX} torch
COPY --from=wheel /wheels /wheels
RUN python -m pip install /wheels/softtrunc-*.whl && softtrunc --version
RUN useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["softtrunc"]
CMD ["--help"]
