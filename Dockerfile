FROM python:3.11-slim-bookworm

# Which build of torch. Empty: the package index of pip, whose x86-64 Linux build brings CUDA along.
# The address of one of PyTorch's own wheel indexes: that build (docker-compose.yml names the one for CPUs).
ARG TORCH_INDEX=

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 CHECKPOINT_DIR=/checkpoints
RUN python -m venv /opt/coarsefine && mkdir -p /opt/coarsefine/as-owner "$CHECKPOINT_DIR"
ENV PATH=/opt/coarsefine/as-owner:/opt/coarsefine/bin:$PATH
WORKDIR /opt/coarsefine/source

# From what changes seldom to what changes often, so that a change of code downloads and copies little:
# torch (most of the image), then the other libraries, then the project.
COPY constraints.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install --no-deps --index-url "$TORCH_INDEX" -c constraints.txt torch || { \
        echo "torch cannot be had from $TORCH_INDEX; build with TORCH_INDEX= (empty) to take the default package index's" >&2; \
        exit 1; }; \
    else \
      pip install -c constraints.txt torch; \
    fi
COPY pyproject.toml ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' >libraries.txt && \
    pip install -c constraints.txt -r libraries.txt
COPY LICENSE README.md ./
COPY coarsefine coarsefine
COPY common common
COPY master master
COPY worker worker
RUN pip install --no-deps .
COPY docker/as-owner.sh docker/health.py docker/redis_users.py /opt/coarsefine/
RUN for name in master worker entrypoint; do ln -s ../as-owner.sh "/opt/coarsefine/as-owner/$name"; done

WORKDIR /
ENTRYPOINT ["/opt/coarsefine/as-owner/entrypoint"]
CMD ["worker", "start"]
