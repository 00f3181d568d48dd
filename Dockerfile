# The command sparse3dunet, for a CPU or for GPUs by CUDA:
#   docker build --target cpu  --build-arg TORCH_INDEX=ADDRESS -t sparse3dunet:cpu .
#   docker build --target cuda -t sparse3dunet:cuda .
# ADDRESS is PyTorch's index of builds for CPUs, as PyTorch's installation page gives it; without it, the image for CPUs has
# the same, larger PyTorch as that for GPUs. How to run them: docs/cluster.md.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
RUN pip install --no-cache-dir build==1.6.1
COPY . .
RUN python -m build --wheel --outdir /wheels

FROM python:${PYTHON}-slim AS base
# Caches lie where any user may write: a container is often run as the user whose files it writes
ENV PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/tmp/cache
RUN useradd --create-home --uid 1000 user
WORKDIR /work
ENTRYPOINT ["sparse3dunet"]
CMD ["--help"]

FROM base AS cuda
COPY requirements.txt /tmp/
RUN pip install --no-cache-dir --constraint /tmp/requirements.txt torch
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --constraint /tmp/requirements.txt \
  "$(echo /wheels/*.whl)[annotate,dask,dicom,microscopy,tracking]"
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000

FROM base AS cpu
ARG TORCH_INDEX=""
COPY requirements.txt /tmp/
RUN pip install --no-cache-dir --constraint /tmp/requirements.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
  torch
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --constraint /tmp/requirements.txt \
  "$(echo /wheels/*.whl)[annotate,dask,dicom,microscopy,tracking]"
USER 1000
