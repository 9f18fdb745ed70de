#pragma once

// Reads that threads make themselves, and tables that are looked up by them.
void test_own_reads();
