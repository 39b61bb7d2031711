# shellcheck shell=bash disable=SC2034  # the launch scripts read what a profile sets
# A virtual environment outside the checkout, such as one on a shared file system: XPYD_VENV names its folder.
XPYD_PYTHON=${XPYD_VENV:?profile venv: set XPYD_VENV to the folder of the virtual environment}/bin/python
[[ -x $XPYD_PYTHON ]] || fail "profile venv: XPYD_VENV=$XPYD_VENV has no bin/python"
