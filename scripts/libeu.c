// SPDX-License-Identifier: Apache-2.0
/*
 * The static libelf 0.192, that of Debian 13, lacks these functions
 * (https://sourceware.org/bugzilla/show_bug.cgi?id=32293). They set up and free a
 * tree, zero in a new Elf, that only elf_getdata_rawchunk fills. libbpf does not call
 * it: a program that did would not link, for more of the tree is missing than this.
 */
void eu_search_tree_init(void *tree, void *compare)
{
}

void eu_search_tree_fini(void *tree, void *free_node)
{
}
