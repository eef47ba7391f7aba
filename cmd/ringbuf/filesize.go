package main

import (
	"errors"
	"strconv"
)

// A fileSize is the value of -C and --max-size, in bytes.
type fileSize int64

func (s *fileSize) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*s), 10)
}

func (s *fileSize) Type() string { return "size" }

func (s *fileSize) Set(value string) error {
	unit := int64(1_000_000)
	number := value
	if i := len(value) - 1; i >= 0 {
		units := map[byte]int64{'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30}
		if u, ok := units[value[i]|' ']; ok {
			unit, number = u, value[:i]
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > (1<<62)/unit {
		return errors.New("it is a number of millions of bytes, or of KiB, MiB or GiB with k, m or g")
	}
	*s = fileSize(n * unit)
	return nil
}
