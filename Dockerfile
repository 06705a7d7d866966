# One image for all nodes of a cluster:
#     docker build -t worldloom .
# torch from PyPI brings CUDA's libraries, so the image runs on nodes with and without GPUs; the driver is the node's.
# A smaller image for CPUs alone takes torch from an index of CPU builds:
#     docker build --build-arg TORCH_INDEX=URL -t worldloom-cpu .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG TORCH_INDEX=
ARG EXTRAS=models,scores

# KubeRay asks whether a pod is alive by wget.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/worldloom
# torch has a layer of its own, which changes of the code do not build again.
COPY constraints constraints
RUN pip install --no-cache-dir -c constraints/newest.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY . .
RUN pip install --no-cache-dir -c constraints/newest.txt ".[$EXTRAS]"

RUN useradd --create-home --uid 1000 worldloom
USER worldloom
WORKDIR /home/worldloom
CMD ["worldloom", "--help"]
