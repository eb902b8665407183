#!/usr/bin/env bash
# Cuts DejaVuSans.ttf (version 2.37, given as the first argument) down to the characters that a plot
# may need: Latin, Greek, Cyrillic and a few signs, without hinting and layout tables.
# Needs `pyftsubset` from the Python package fonttools.
set -euo pipefail
here=$(dirname "$0")
pyftsubset "$1" --output-file="$here/DejaVuSans-subset.ttf" --no-hinting --layout-features='' \
    --unicodes="U+0020-007E,U+00A0-017F,U+0386-03CE,U+0401-045F,U+2010-2015,U+2018-201E,U+2020-2022,U+2026,U+2030,U+20AC,U+2190-2193,U+2212,U+2248,U+2264-2265,U+FFFD" \
    --desubroutinize --drop-tables+=GPOS,GSUB,GDEF,kern,FFTM --name-IDs='0,1,2,13' --notdef-outline
