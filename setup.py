"""Compiles src/xpyd/native where there is a C compiler; without one torch does the same. The rest: pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "xpyd.native._kernels",
            ["src/xpyd/native/kernels.c"],
            depends=[f"src/xpyd/native/kernels_{part}.h" for part in ("body", "product", "chunk", "step", "tell")],
            libraries=["m"],
            # Not for the linker: with -ffast-math it would change how the whole process rounds denormals.
            extra_compile_args=["-O3", "-ffast-math", "-fopenmp", "-Wno-psabi"],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]
)
