#!/usr/bin/env bash
# `data` in a plan: the files are what is trained on, the loss on them falls, and a file that is not what the plan says is
# refused by its name before anything starts.
source "$(dirname "$0")/lib.bash"
export ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 # MPI leaks at the end of every rank

tools/make-tiny-llava-data "$tmp" >"$tmp/made" || fail "tools/make-tiny-llava-data: exit $?"
grep -q '^without the images: .* = 0.1472 nats' "$tmp/made" || fail "tools/make-tiny-llava-data says $(cat "$tmp/made")"
# The same bytes on every machine: the loss curve of one is that of another.
sha256sum --status -c <<END || fail "tools/make-tiny-llava-data: other bytes than before"
a3b755e8731396332cfcaf6422b5324391ddcd1bc667f99db5878c2b75b5cf55  $tmp/tiny-llava.u16
f47a00c4df1b2354d2d1abc048dde358e27bb7fcd9f2a13f8808fdfa52964657  $tmp/tiny-llava.f32
END

# data_plan DATA [SED]: $tmp/plan.yaml is the example with this `data`, changed.
data_plan() {
    sed -e "s#\.\./clusters#$PWD/examples/clusters#" -e "s#^data:.*#data: {$1}#" -e "${2:-}" examples/plans/tiny-llava-4rank.yaml \
        >"$tmp/plan.yaml"
}
train() { # 20 steps, reported as JSON
    run run "$tmp/plan.yaml" --steps "${1:-20}" --warmup 0 --quiet --json
    exits 0
    cp "$tmp/out" "$tmp/run.json"
}
losses() { python3 -c 'import json, sys; print(*(s["loss"] for s in json.load(open(sys.argv[1]))["steps"]))' "$tmp/run.json"; }
true_of() { # EXPRESSION over the losses `l`
    python3 -c "import sys; l = [float(x) for x in sys.argv[1:]]; sys.exit(not ($1))" $2
}

both="tokens: $tmp/tiny-llava.u16, images: $tmp/tiny-llava.f32"
data_plan "$both"
train
real=$(losses)
true_of 'len(l) == 20 and 4.5 < l[0] < 5.2 and l[19] < 2.2 and l[19] < l[9] < l[0]' "$real" || fail "$ran: losses $real"

# The layout does not matter: one rank for each module.
data_plan "$both" 's/dp: 2, offset: 0/dp: 1, offset: 0/; s/pp: 2, dp: 1, offset: 2/dp: 1, offset: 1/'
train 3
other=$(losses)
true_of 'all(abs(a - b) <= 1e-5 * a for a, b in zip(l[:3], l[3:]))' "$(cut -d' ' -f1-3 <<<"$real") $other" ||
    fail "$ran: losses $other on 2 ranks, $real on 4"

# Each file matters: without it the samples are synthetic, and the losses others.
for one in "tokens: $tmp/tiny-llava.u16" "images: $tmp/tiny-llava.f32"; do
    data_plan "$one"
    train 2
    true_of 'l[1] != l[3]' "$(cut -d' ' -f1-2 <<<"$real") $(losses)" || fail "$ran: data {$one} gives the losses of both"
done

# Other kinds of number hold the same samples.
tools/make-data captions "$tmp/tiny-llava/captions.txt" --seq 48 --placeholders 16 -o "$tmp/wide.u32" >"$tmp/made"
tools/make-data images "$tmp/tiny-llava" --patch 6 -o "$tmp/short.bf16" >"$tmp/made"
data_plan "tokens: $tmp/wide.u32, images: $tmp/short.bf16"
train 2
true_of 'abs(l[1] - l[3]) < 1e-3' "$(cut -d' ' -f1-2 <<<"$real") $(losses)" || fail "$ran: losses $(losses), expected near $real"

# Refused: what is wrong, who says so.
head -c 1000 "$tmp/tiny-llava.u16" >"$tmp/cut.u16"
head -c 960 "$tmp/tiny-llava.u16" >"$tmp/few.u16"
: >"$tmp/empty.f32"
mkdir "$tmp/folder.f32"
while IFS='|' read -r data pattern; do
    data_plan "$data"
    run run "$tmp/plan.yaml" --steps 1
    exits 3
    says err "$pattern"
    silent out
done <<END
tokens: $tmp/nothing.u16|nothing.u16: cannot open
tokens: $tmp/cut.u16|cut.u16: holds 1000 bytes, not a whole number of samples; expected a multiple of 96 .*language: seq 48
tokens: $tmp/few.u16, images: $tmp/tiny-llava.f32|tiny-llava.f32: holds 960 samples, but .*few.u16 holds 10; expected
tokens: $tmp/tiny-llava.f32|tiny-llava.f32: holds no tokens.*expected .u16 or .u32
images: $tmp/tiny-llava.u16|tiny-llava.u16: holds no inputs.*expected .f32 or .bf16
images: $tmp/empty.f32|empty.f32: is empty; expected
images: $tmp/folder.f32|folder.f32: is not a regular file
END
data_plan "tokens: $tmp/tiny-llava.u16" 's/vocab: 128/vocab: 120/' # `y` is 121
run run "$tmp/plan.yaml" --steps 1
exits 3
says err 'tiny-llava.u16: sample 0, position [0-9]+: token 121; expected less than 120 \(modules.language.vocab\)'
silent out

# The tools say what is wrong, too.
python3 - "$tmp" <<'END' || fail 'cannot write PNGs'
import struct, sys, zlib
from pathlib import Path
data = Path(sys.argv[1], "tiny-llava/0000.png").read_bytes()
chunk = lambda name, body: struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
def png(head, *chunks): # 2 x 2 pixels
    return data[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, *head)) + b"".join(chunks) + chunk(b"IEND", b"")
palette, bytes_of = chunk(b"PLTE", bytes([0, 0, 0, 255, 255, 255])), lambda raw: chunk(b"IDAT", zlib.compress(raw))
for name, content in {
    "cut": data[:200],
    "damaged": data[:60] + bytes([data[60] ^ 1]) + data[61:],
    "interlaced": png((8, 2, 0, 0, 1), bytes_of(bytes(14))),
    "deep": png((16, 2, 0, 0, 0), bytes_of(bytes(26))),
    "outside": png((8, 3, 0, 0, 0), palette, bytes_of(bytes([0, 0, 1, 0, 1, 2]))),
    "short": png((8, 0, 0, 0, 0), bytes_of(bytes(5))),
    # one picture, four ways: black, white / white, white
    "same_grey": png((8, 0, 0, 0, 0), bytes_of(bytes([0, 0, 255, 2, 255, 0]))), # plain, and from above
    "same_palette": png((8, 3, 0, 0, 0), palette, bytes_of(bytes([1, 0, 1, 4, 1, 0]))), # from the left, and Paeth
    "same_rgb": png((8, 2, 0, 0, 0), bytes_of(bytes([0] + [0] * 3 + [255] * 3 + [3] + [255] * 3 + [0] * 3))), # and average
}.items():
    Path(sys.argv[1], name + ".png").write_bytes(content)
END
while IFS='|' read -r name pattern; do
    tools/make-data images "$tmp/$name.png" --patch 2 -o "$tmp/x.f32" >"$tmp/out" 2>"$tmp/err"
    rc=$? ran="tools/make-data images $name.png"
    exits 3
    says err "$name.png: $pattern"
done <<END
cut|ends at byte 200 within a chunk; expected IEND
damaged|chunk IDAT at byte 33 is damaged
interlaced|8 bits a channel, colour type 2, interlaced; expected 8 bits
deep|16 bits a channel
outside|a pixel is not in its palette of 2 colours
short|5 bytes of pixels; expected 6 for 2 x 2
END
tools/make-data images "$tmp"/same_*.png --patch 2 -o "$tmp/same.f32" >"$tmp/out" || fail "tools/make-data: exit $?"
python3 - "$tmp/same.f32" <<'END' || fail 'PNGs of one picture give other numbers'
import array, sys
x = array.array("f", open(sys.argv[1], "rb").read())
sys.exit(x.tolist() != 3 * ([-1.0] * 3 + [1.0] * 9))
END

tools/plot-loss "with images=$tmp/run.json" -o "$tmp/loss.svg" --line '0.147=guessing' || fail "tools/plot-loss: exit $?"
python3 -c 'import sys, xml.dom.minidom as x; sys.exit(len(x.parse(sys.argv[1]).getElementsByTagName("polyline")) != 1)' \
    "$tmp/loss.svg" || fail 'tools/plot-loss: not an SVG with one curve'
finish
