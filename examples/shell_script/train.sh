#!/bin/sh
# Find the root of two by Newton's method with a step of its own, in a language without libraries.
# Its state is a number in a file.
set -e
x=1
[ -z "$COARSEFINE_RESUME" ] || x=$(cat "$COARSEFINE_RESUME")
n=$COARSEFINE_EPOCH
while [ "$n" -lt "$COARSEFINE_EPOCHS" ]; do
    n=$((n + 1))
    x=$(awk -v x="$x" -v step="$1" 'BEGIN { printf "%.17g", x - step * (x * x - 2) / (2 * x) }')
    error=$(awk -v x="$x" 'BEGIN { e = x * x - 2; printf "%.17g", e < 0 ? -e : e }')
    echo "epoch $n: x = $x"
    echo "$x" > "$COARSEFINE_TRIAL_DIR/x-$n"
    echo "{\"epoch\": $n, \"val_error\": $error, \"checkpoint\": \"$COARSEFINE_TRIAL_DIR/x-$n\"}" \
        >> "$COARSEFINE_REPORTS"
done
