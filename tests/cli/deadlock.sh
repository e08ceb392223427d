#!/usr/bin/env bash
# A deadlock is found, not met: encoders of different pipeline depth need buffered messages, which `check` says with the
# ranks that would wait for each other, while equal depths need none.
source "$(dirname "$0")/lib.bash"

module() { # NAME OFFSET PP
    cat <<END
  $1: {type: vision, layers: 2, hidden: 256, heads: 8, ffn: 1024, seq: 16, input_dim: 48, parallel: {pp: $3, dp: 1, offset: $2}}
END
}
depths() { # NAME PP_A PP_B
    {
        echo "cluster: $PWD/examples/clusters/dgx-h200.yaml"
        echo 'modules:'
        module deep 0 "$2"
        module shallow "$2" "$3"
        echo "  language: {type: language, layers: 2, hidden: 256, heads: 8, ffn: 1024, vocab: 1000, seq: 64, parallel: {pp: 2, dp: 1, offset: $(($2 + $3))}}"
        echo 'step: {microbatches: 8}'
    } >"$tmp/$1.yaml"
}

# Prints the warnings of a `check --json` that speak of buffering and name at least two ranks.
waits() {
    python3 - "$tmp/out" <<'END'
import json, re, sys
with open(sys.argv[1], encoding="utf-8") as file:
    texts = [entry["message"] for entry in json.load(file)["warnings"]]
print("\n".join(text for text in texts if "buffer" in text and len(re.findall(r"\brank \d+|\b\d+ ?->", text)) >= 2))
END
}

depths equal 2 2
run check "$tmp/equal.yaml" --json
exits 0
[ -z "$(waits)" ] || fail "$ran: warns of a deadlock that cannot be: $(waits)"
depths unequal 2 1
run check "$tmp/unequal.yaml" --json
exits 0
[ -n "$(waits)" ] || fail "$ran: no warning with the cycle of waiting ranks: $(head -c 1000 "$tmp/out")"

for command in show predict; do # warn, proceed
    run $command "$tmp/unequal.yaml"
    exits 0
done
# Two ways of different length to language: lanes are not enough, and only buffered sends let the step end.
depths detour 1 1
sed -i 's/^step:/edges: [[deep, shallow], [deep, language], [shallow, language]]\n&/' "$tmp/detour.yaml"
for command in show predict; do
    run $command "$tmp/detour.yaml"
    exits 0
done
says err 'every send were buffered'
finish
