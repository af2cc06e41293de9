# Verifies the replication, offline:
#   docker build -t influence .
#   docker run --rm --network none influence                                   embedded data, minutes
#   docker run --rm --network none -v DATA:/data:ro -v OUT:/results influence tier=paper from=run
# DATA is a folder with the original files; OUT takes the records, the tables and the report (add --user "$(id -u)"
# where OUT is yours). `docker run --rm influence tier=paper from=results` reads the committed records instead.
# To pin the base image, replace the tag by its digest: docker pull python:3.11-slim, then
# docker inspect --format '{{index .RepoDigests 0}}' python:3.11-slim prints the name to write after FROM.
FROM python:3.11-slim

# COMMIT and VERSION name the code: --build-arg COMMIT=$(git rev-parse HEAD)
ARG COMMIT=unknown
ARG VERSION=unknown

# The package index's torch runs on processors and on NVIDIA GPUs alike, and fits its torchvision; constraints.txt
# pins the pair. DEVICE=cuda makes every run in the image use the GPU (then: docker run --gpus all).
# TORCH_INDEX takes both from another index, such as PyTorch's own with files for processors alone: an image some
# 4 GB smaller, which has not been tried here.
ARG DEVICE=cpu
ARG TORCH_INDEX=""

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /app

# Slow and seldom changed first: the packages, each file by its hash, then the code. Another index has other files of
# torch, whose hashes are not known here; then versions alone are pinned.
COPY constraints.txt requirements.lock ./
RUN if [ -z "$TORCH_INDEX" ]; then \
      python -m pip install --require-hashes --requirement requirements.lock; \
    else \
      python -m pip install --constraint constraints.txt --index-url "$TORCH_INDEX" torch torchvision \
      && sed -nE 's/^([a-z0-9_.-]+==[^ ]+).*/\1/p' requirements.lock \
         | grep -vE '^(torch|torchvision|triton|nvidia-|cuda-)' > /tmp/packages.txt \
      && python -m pip install --no-deps --requirement /tmp/packages.txt \
      && rm /tmp/packages.txt; \
    fi
# What is inside: every package with its version, licence and origin.
RUN python -m pip inspect > /packages.json
COPY . ./

# Any user may run it: nothing is written but /tmp and /results.
RUN useradd --uid 10001 --no-create-home influence \
 && mkdir -p /data /results && chown influence /results && chmod 1777 /results
USER influence
ENV PYTHONPATH=/app HOME=/tmp USER=influence MPLCONFIGDIR=/tmp/matplotlib WANDB_MODE=offline \
    INFLUENCE_MIRROR=/data INFLUENCE_OUTPUT=/results INFLUENCE_DEVICE=$DEVICE
VOLUME /results
LABEL org.opencontainers.image.title="influence-replication" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision=$COMMIT \
      org.opencontainers.image.version=$VERSION
ENTRYPOINT ["python", "-m", "experiments.verify"]
CMD ["tier=smoke"]
