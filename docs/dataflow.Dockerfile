# The image of the workers on Dataflow; see docs/runners.md. Not tried on Dataflow.
#   docker build --file docs/dataflow.Dockerfile --tag REGION-docker.pkg.dev/PROJECT/REPOSITORY/clip-transforms:0.1.0 .
# Beam's version and Python's must be those of the machine that starts the job.
FROM apache/beam_python3.11_sdk:2.77.0
ARG MODEL=ViT-B/32
ENV CLIP_CACHE=/opt/clip
WORKDIR /opt/clip-transforms
COPY setup.py README.md LICENSE constraints.txt ./
COPY clip_transforms clip_transforms
COPY schemas schemas
COPY pipelines pipelines
COPY docs/dataflow-install.sh docs/dataflow-install.sh
RUN MODEL=$MODEL sh docs/dataflow-install.sh
