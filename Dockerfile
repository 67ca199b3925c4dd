# syntax=docker/dockerfile:1
# contrail, alone or in any role: small, non-root, everything it writes under /data. Its root file system may be read-only. SQLite, OpenSSL, librdkafka and zstd are
# built in: build-essential brings the C compiler, make and perl that this takes, and the image at the end needs the C library alone.
FROM rust:1.95.0-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src ./src
COPY schemas ./schemas
COPY loadtest ./loadtest
RUN cargo build --release --locked --bin contrail && strip target/release/contrail && mkdir /data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /build/target/release/contrail /usr/local/bin/contrail
COPY --from=build --chown=nonroot:nonroot /data /data
USER nonroot
# The OpenSSL that is built in looks for the system's authorities where this says.
ENV CONTRAIL_DATA=/data CONTRAIL_LISTEN=0.0.0.0:8080 CONTRAIL_TELEMETRY_FORMAT=json SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/contrail"]
CMD ["serve"]
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["/usr/local/bin/contrail", "healthy"]
