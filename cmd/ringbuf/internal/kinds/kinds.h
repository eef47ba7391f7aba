/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * A value of each kind that BTF knows. The compiler lays them out and fills them in. This file
 * needs only headers of the compiler, so that it can be compiled for any processor.
 */
#include <stdbool.h>
#include <stddef.h>

typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;
typedef short s16;
typedef unsigned int u32;
typedef int s32;
typedef unsigned long long u64;
typedef long long s64;
typedef unsigned long long ticks_t;

enum color { RED, GREEN = 7, BLUE = 0x80000000 };
enum level { DEBUG = -2, INFO, WARNING = 5 };

/* Compilers before clang 15 cut these to 32 bits. */
#if __clang_major__ >= 15
enum wide { SMALL = 1, WIDE = 1ULL << 40 };
#endif

struct point {
	short x;
	int y;
};

struct integers {
	u8 u8;
	s8 s8;
	u16 u16;
	s16 s16;
	u32 u32;
	s32 s32;
	u64 u64;
	s64 s64;
	unsigned __int128 u128;
	__int128 s128;
	bool yes, no;
	char letter;
};

const struct integers integers = {
    .u8 = 0xff,
    .s8 = -128,
    .u16 = 0xfffe,
    .s16 = -2,
    .u32 = 0xfffffffd,
    .s32 = -3,
    .u64 = 0xfffffffffffffffc,
    .s64 = -0x7fffffffffffffff - 1,
    .u128 = ((unsigned __int128)0x0123456789abcdef << 64) | 0xfedcba9876543210,
    .s128 = -((__int128)1 << 100),
    .yes = true,
    .letter = 'A',
};

struct bits {
	unsigned int three : 3;
	int five : 5;
	unsigned int : 4; /* has no name and is not shown */
	bool flag : 1;
	enum color color : 4;
	u64 forty : 40;
	s64 minus : 33;
	u8 after;
};

const struct bits bits = {
    .three = 5,
    .five = -7,
    .flag = true,
    .color = GREEN,
    .forty = 0xfedcba9876,
    .minus = -0x80000001ll,
    .after = 99,
};

struct others {
	const volatile int constant;
	ticks_t ticks;
	float f;
	double d;
	double infinite;
	double negative_zero;
	void *pointer;
	int (*function)(int);
	enum color color, unknown, blue;
	enum level level;
#if __clang_major__ >= 15
	enum wide wide;
#endif
};

const struct others others = {
    .constant = 11,
    .ticks = 12,
    .f = 1.1f,
    .d = -2.5e-300,
    .infinite = -__builtin_inf(),
    .negative_zero = -0.0,
    .pointer = (void *)0xffff888012345678,
    .color = GREEN,
    .unknown = (enum color)3,
    .blue = BLUE,
    .level = DEBUG,
#if __clang_major__ >= 15
    .wide = WIDE,
#endif
};

typedef struct {
	char comm[8];
	char full[4];
	char rows[2][3];
	u8 bytes[3];
	int matrix[2][3];
	struct point points[2];
	struct {
		int inner;
		union {
			u32 word;
			u8 octets[4];
		};
	};
	union address {
		u32 v4;
		u16 v6[8];
	} address;
	struct {
	} empty;
	struct nested {
		struct point from, to;
	} nested;
} compound_t;

const compound_t compound = {
    .comm = "ssh\0junk", /* the text behind the 0 is not shown */
    .full = {'f', 'u', 'l', 'l'},
    .rows = {"ab", {'\xff', '"', '\n'}},
    .bytes = {1, 2, 3},
    .matrix = {{1, 2, 3}, {4, 5, 6}},
    .points = {{1, -1}, {2, -2}},
    .inner = 21,
    .word = 0x04030201,
    .address.v6 = {1, 2, 3, 4, 5, 6, 7, 8},
    .nested = {{3, 4}, {5, 6}},
};

struct items {
	u32 count;
	u8 odd;
	struct point items[];
};

const struct items items = {.count = 2, .odd = 1, .items = {{7, 8}, {9, 10}}};

/* The flexible array begins in the padding that sizeof counts. */
struct arguments {
	u32 count;
	u8 odd;
	char text[];
};

const struct arguments arguments = {.count = 2, .odd = 3, .text = "ls\0-l"};

struct outer {
	u8 kind;
	struct {
		union {
			struct {
			} none;
			u8 bytes[0];
			u16 words[0];
		};
	};
};

const struct {
	struct outer outer;
	u8 rest[6];
} outer = {{.kind = 9}, {0, 1, 0, 2, 0}};
