// SPDX-License-Identifier: Apache-2.0
/*
 * The static libelf 0.192 of Debian 13 lacks these functions
 * (https://sourceware.org/bugzilla/show_bug.cgi?id=32293). They set up and free a tree,
 * which is zero in a new Elf. Only elf_getdata_rawchunk fills it. libbpf does not call
 * that function. A program that did would not link, because more of the tree is missing.
 */
void eu_search_tree_init(void *tree, void *compare)
{
}

void eu_search_tree_fini(void *tree, void *free_node)
{
}
