# manners, as `manners serve` and every other command: docker build -t manners .
FROM python:3.11-slim

# Who runs it is nobody in particular, and owns nothing but the data.
RUN useradd --uid 10001 --create-home manners \
    && install --directory --owner=manners --mode=0700 /data /backups

WORKDIR /src
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY manners ./manners
# torch goes in first: whichever build of it there is, the rest is chosen around it.
RUN python -m pip install --no-cache-dir -c constraints.txt torch==2.13.0 \
    && python -m pip install --no-cache-dir -c constraints.txt '.[postgres]'

USER manners
WORKDIR /data
# Models that are fetched stay beside the workspace, on the volume.
ENV HF_HOME=/data/cache/huggingface \
    MANNERS_CACHE=/data/cache/manners \
    PYTHONUNBUFFERED=1
VOLUME ["/data", "/backups"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["manners"]
CMD ["serve", "--workspace", "/data/project", "--host", "0.0.0.0", "--log-format", "json"]
