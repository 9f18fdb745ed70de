#pragma once

// What a macro stands for, as text.
#define WEIGHTPAGER_TEXT(name) WEIGHTPAGER_TEXT_OF(name)
#define WEIGHTPAGER_TEXT_OF(name) #name
