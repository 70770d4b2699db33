# docker build -t qtool . && docker run --rm -v "$PWD:/data" -w /data qtool quantize model.onnx
FROM rust:1.95-slim AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY docs docs
COPY tests tests
RUN cargo build --release --locked --bin qtool

FROM debian:stable-slim
COPY --from=build /src/target/release/qtool /usr/local/bin/qtool
ENTRYPOINT ["qtool"]
