//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Writes structs with flexible array members. The C compiler decides their layout. Loads
 * on kernel 5.10 and newer.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define MAX_ELEMENTS 8
#define BUFFER_SIZE 256

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12);
} events SEC(".maps");

struct buffer {
	/* Twice the size, so that every size is in bounds. */
	__u64 words[2 * BUFFER_SIZE / 8];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct buffer);
} buffer SEC(".maps");

/* flex.go has the same layout. */
struct layout {
	__u32 offset; /* of the array */
	__u32 size;
	__u32 align;
	__u32 element_size;
};

struct request {
	__u64 kind;
	__u64 elements;
	__u64 padded; /* submit sizeof bytes before the elements, not offsetof */
	__u64 extra;  /* additional bytes; may be negative */
	__u64 layout; /* submit a struct layout instead */
};

/* Structs that are elements. */
struct tailed {
	__u32 x;
	__u8 y;
};
struct triple {
	__u8 x, y, z;
};
struct shorts {
	__u16 x, y, z;
};
struct ten {
	__u16 x[5];
};

/* typed_test.go has the same types. */
struct of_u8 {
	__u64 a;
	__u32 b;
	__u8 data[];
};
struct of_u16 {
	__u64 a;
	__u32 b;
	__u16 data[];
};
struct of_u32 {
	__u32 a;
	__u8 b;
	__u32 data[];
};
struct of_u64 {
	__u32 a;
	__u64 data[];
};
struct of_tailed {
	__u64 a;
	__u8 b;
	struct tailed data[];
};
struct of_triple {
	__u64 a;
	__u8 b;
	struct triple data[];
};
struct of_shorts {
	__u64 a;
	__u32 b;
	struct shorts data[];
};
struct of_ten {
	__u64 a;
	__u16 b;
	struct ten data[];
};
struct nested {
	__u16 a;
	struct {
		__u64 b;
		__u8 c;
	} in;
	__u8 data[];
};
struct array_last {
	__u64 a;
	__u8 b[3];
	__u8 data[];
};
struct tailed_last {
	__u64 a;
	struct tailed b[1];
	__u16 data[];
};
struct scalar {
	__u16 a;
	__u64 data[];
};

enum kind {
	OF_U8,
	OF_U16,
	OF_U32,
	OF_U64,
	OF_TAILED,
	OF_TRIPLE,
	OF_SHORTS,
	OF_TEN,
	NESTED,
	ARRAY_LAST,
	TAILED_LAST,
	SCALAR,
};

/*
 * Sets fields of the struct s in the buffer, and all elements of its array, and gets its
 * layout.
 */
#define FILL(type, fields, element)                                                                \
	do {                                                                                       \
		struct type *s = (void *)b;                                                        \
                                                                                                   \
		fields;                                                                            \
		for (i = 0; i < MAX_ELEMENTS; i++) {                                               \
			typeof(s->data[0]) *e = &s->data[i];                                       \
                                                                                                   \
			element;                                                                   \
		}                                                                                  \
		l = (struct layout){                                                               \
		    .offset = __builtin_offsetof(struct type, data),                               \
		    .size = sizeof(struct type),                                                   \
		    .align = _Alignof(struct type),                                                \
		    .element_size = sizeof(s->data[0]),                                            \
		};                                                                                 \
	} while (0)

/* Context: struct request. Returns 0 if the record was accepted. */
SEC("raw_tp/emit_flex")
int emit_flex(struct bpf_raw_tracepoint_args *ctx)
{
	struct request r = {ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3], ctx->args[4]};
	__u32 zero = 0, size, i;
	struct layout l;
	struct buffer *b = bpf_map_lookup_elem(&buffer, &zero);

	if (!b)
		return -1;
	for (i = 0; i < BUFFER_SIZE / 8; i++) /* so that padding is not 0 */
		b->words[i] = -1;
	switch (r.kind) {
	case OF_U8:
		FILL(of_u8, s->a = 1; s->b = 2, *e = 10 + i);
		break;
	case OF_U16:
		FILL(of_u16, s->a = 1; s->b = 2, *e = 10 + i);
		break;
	case OF_U32:
		FILL(of_u32, s->a = 1; s->b = 2, *e = 10 + i);
		break;
	case OF_U64:
		FILL(of_u64, s->a = 1, *e = 10 + i);
		break;
	case OF_TAILED:
		FILL(of_tailed, s->a = 1; s->b = 2, e->x = 10 + i; e->y = 20 + i);
		break;
	case OF_TRIPLE:
		FILL(of_triple, s->a = 1; s->b = 2, e->x = 10 + i; e->y = 20 + i; e->z = 30 + i);
		break;
	case OF_SHORTS:
		FILL(of_shorts, s->a = 1; s->b = 2, e->x = 10 + i; e->y = 20 + i; e->z = 30 + i);
		break;
	case OF_TEN:
		FILL(of_ten, s->a = 1; s->b = 2, e->x[0] = 10 + i; e->x[4] = 20 + i);
		break;
	case NESTED:
		FILL(nested, s->a = 1; s->in.b = 2; s->in.c = 3, *e = 10 + i);
		break;
	case ARRAY_LAST:
		FILL(array_last, s->a = 1; s->b[0] = 2; s->b[2] = 3, *e = 10 + i);
		break;
	case TAILED_LAST:
		FILL(tailed_last, s->a = 1; s->b[0].x = 2; s->b[0].y = 3, *e = 10 + i);
		break;
	case SCALAR:
		FILL(scalar, s->a = 1, *e = 10 + i);
		break;
	default:
		return -1;
	}
	if (r.layout)
		return bpf_ringbuf_output(&events, &l, sizeof(l), 0);
	size = (r.padded ? l.size : l.offset) + r.elements * l.element_size + r.extra;
	return bpf_ringbuf_output(&events, b, size & (BUFFER_SIZE - 1), 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
